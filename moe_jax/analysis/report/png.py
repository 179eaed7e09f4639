"""PNG files, made here."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

Chunk = tuple[bytes, bytes]
PALETTE, COLOUR = 3, 2  # types of a pixel: an index, red and green and blue


def encoded(pixels: np.ndarray, kind: int, more: Sequence[Chunk] = ()) -> bytes:
    """uint8 (rows, columns) of indices, or (rows, columns, 3). more: chunks before the pixels."""
    rows, columns = pixels.shape[:2]
    flat = np.ascontiguousarray(pixels, np.uint8).reshape(rows, -1)
    lines = np.zeros((rows, flat.shape[1] + 1), np.uint8)  # each starts with its filter, 0: none
    lines[:, 1:] = flat
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, kind, 0, 0, 0)),
        *more,
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
