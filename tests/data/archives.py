"""Small archives in the form of those that are fetched."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from dataclasses import replace

import numpy as np

from moe_jax.data.fetch.archives import Card


def card_of(card: Card, **contents: bytes) -> Card:
    """The card of archives with these contents, by their names (. as _ in keywords) or in order."""
    archives = [
        replace(archive, sha256=hashlib.sha256(content).hexdigest())
        for archive, content in zip(card.archives, contents.values(), strict=True)
    ]
    return replace(card, archives=tuple(archives))


def deb_of(files: dict[str, bytes]) -> bytes:
    """A .deb: an ar archive of debian-binary, control.tar.xz and data.tar.xz (deb(5))."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    out = b"!<arch>\n"
    for name, content in [
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"x" * 7),
        ("data.tar.xz", inner.getvalue()),
    ]:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    return out


def idx_of(array: np.ndarray) -> bytes:
    """A packed idx file of bytes."""
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())


def tar_of(files: dict[str, bytes]) -> bytes:
    """A .tar.gz, as a source distribution is one."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()
