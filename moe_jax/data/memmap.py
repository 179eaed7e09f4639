"""Streams of tokens that were made elsewhere: .npy files, or .bin files of plain integers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least, kind
from moe_jax.data.packing import PackedRows, packed_rows
from moe_jax.data.tokenizer import TOKENIZERS, Bpe, Ids, TokenizerConfig
from moe_jax.data.types import require_split

BLOCK = 1 << 16
BLOCKS = 512


@dataclass(frozen=True, kw_only=True)
class Memmap:
    """Files of token ids, mapped into memory; documents end with the tokenizer's EOS id.

    train, validation: .npy with one dimension of integers, or any other file of little-endian
    integers of `dtype` after `header_bytes`.
    tokenizer: "ids" knows no text, so no bits per byte; or "bytes", or "bpe" with its file.
    """

    kind_name: ClassVar[str] = "memmap"

    sequence_length: int = 256
    train: str | None = None
    validation: str | None = None
    dtype: Literal["uint8", "uint16", "uint32", "int32", "int64"] = "uint16"  # of a .bin
    header_bytes: int = 0  # of a .bin
    tokenizer: TokenizerConfig = kind({"ids": Ids, **TOKENIZERS}, Ids)

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "sequence_length")
        yield from at_least(self, 0, "header_bytes")
        if isinstance(self.tokenizer, Bpe) and self.tokenizer.file is None:
            yield "tokenizer.file", "must name the tokenizer.json that the tokens were made with"

    def open(self, split: str) -> PackedRows:
        require_split(split)
        file = getattr(self, split)
        if file is None:
            raise UserError(f"memmap: data.{split} names no file")
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"memmap: no file {file} (data.{split})")
        stream = self._read_npy(path) if path.suffix == ".npy" else self._read_bin(path)
        return packed_rows(
            stream,
            sequence_length=self.sequence_length,
            tokenizer=self.tokenizer.make(()),
            split=split,
            kind=self.kind_name,
            content={"tokens": len(stream), "dtype": stream.dtype.name, **sampled_sha256(path)},
            told=str(file),
        )

    def _read_npy(self, path: Path) -> np.ndarray:
        try:
            stream = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{path}: not a .npy file of numbers ({error})") from error
        if stream.ndim != 1 or stream.dtype.kind not in "iu":
            raise UserError(
                f"{path}: holds {stream.dtype} of shape {stream.shape}; a stream of tokens has "
                "one dimension of integers"
            )
        return np.asarray(stream)

    def _read_bin(self, path: Path) -> np.ndarray:
        dtype, size = np.dtype(self.dtype).newbyteorder("<"), path.stat().st_size
        if (size - self.header_bytes) % dtype.itemsize or size < self.header_bytes:
            raise UserError(
                f"{path}: {size} bytes less data.header_bytes = {self.header_bytes} are not a "
                f"whole number of {self.dtype} (data.dtype)"
            )
        if size == self.header_bytes:
            return np.zeros(0, dtype)
        return np.asarray(np.memmap(path, dtype, "r", offset=self.header_bytes))


def sampled_sha256(path: Path) -> dict[str, Any]:
    """{"bytes_on_disk", "sampled_sha256"}: of the whole file up to 32 MiB, of 512 blocks spread
    evenly over a larger one, which nobody wants to read through at each start."""
    size = path.stat().st_size
    whole = -(-size // BLOCK) <= BLOCKS
    starts = range(0, size, BLOCK) if whole else np.linspace(0, size - BLOCK, BLOCKS).astype(int)
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        for start in starts:
            file.seek(int(start))
            sha256.update(file.read(BLOCK))
    return {"bytes_on_disk": size, "sampled_sha256": sha256.hexdigest()}
