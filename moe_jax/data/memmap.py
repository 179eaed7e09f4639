"""Streams of tokens that were made elsewhere: .npy files, or .bin files of plain integers."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least, kind
from moe_jax.config.json_files import JsonObject
from moe_jax.data.files import as_tuple, files_of
from moe_jax.data.packing import PackedRows, packed_rows, require_ids
from moe_jax.data.tokenizer import TOKENIZERS, Bpe, Ids, TokenizerConfig
from moe_jax.data.types import Tokenizer, require_split

BLOCK = 1 << 16
BLOCKS = 512
SUFFIXES = (".npy", ".bin")


@dataclass(frozen=True, kw_only=True)
class Memmap:
    """Files of token ids, mapped into memory; documents end with the tokenizer's EOS id.

    train, validation: a file, a glob, a folder of .npy and .bin, or several, read one after the
    other as one stream. A file is .npy with one dimension of integers, or any other of
    little-endian integers of `dtype` after `header_bytes`.
    tokenizer: "ids" knows no text, so no bits per byte; or "bytes", or "bpe" with its file.
    """

    kind_name: ClassVar[str] = "memmap"

    sequence_length: int = 256
    train: str | tuple[str, ...] | None = None
    validation: str | tuple[str, ...] | None = None
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
        names = as_tuple(getattr(self, split))
        if not names:
            raise UserError(f"memmap: data.{split} names no file")
        files = files_of(names, SUFFIXES, f"data.{split}")
        tokenizer = self.tokenizer.make(())
        streams = [self._read(file, tokenizer) for file in files]
        kinds = {stream.dtype.name: file for stream, file in zip(streams, files, strict=True)}
        if len(kinds) > 1:
            source = ", ".join(f"{name} in {file}" for name, file in kinds.items())
            raise UserError(
                f"memmap: the files of data.{split} hold ids of one dtype, not {source}"
            )
        samples = [sampled_sha256(file) for file in files]
        stream = streams[0] if len(streams) == 1 else Joined(streams)
        content: JsonObject = {"tokens": len(stream), "dtype": stream.dtype.name}
        content |= samples[0] if len(samples) == 1 else {"files": samples}
        return packed_rows(
            stream,
            sequence_length=self.sequence_length,
            tokenizer=tokenizer,
            split=split,
            kind=self.kind_name,
            content=content,
            source=", ".join(names),
        )

    def vocabulary(self) -> int | None:
        return self.tokenizer.identity().get("vocab_size")

    def _read(self, path: Path, tokenizer: Tokenizer) -> np.ndarray:
        """The ids of a file. UserError where they cannot be the tokenizer's, as far as a sample of
        a large one shows it; of every row that is read the ids are looked at again."""
        try:
            stream = self._read_npy(path) if path.suffix.lower() == ".npy" else self._read_bin(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        for start in _starts(len(stream)):
            require_ids(stream[start : start + BLOCK], tokenizer.vocab_size, str(path))
        return stream

    def _read_npy(self, path: Path) -> np.ndarray:
        try:
            stream = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError:
            raise
        except Exception as error:  # of a torn header, whatever its parts raise
            raise UserError(f"{path}: not a .npy file of numbers ({error})") from error
        if not isinstance(stream, np.ndarray):
            raise UserError(f"{path}: not a .npy file of numbers, but a .npz of several")
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


class Joined:
    """Streams one after the other, read by slices: what `PackedRows` needs of an array."""

    def __init__(self, streams: Sequence[np.ndarray]):
        self.dtype = streams[0].dtype
        self._streams = streams
        self._ends = list(itertools.accumulate(map(len, streams)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, place: slice) -> np.ndarray:
        start, stop, _ = place.indices(len(self))
        parts = []
        for stream, end in zip(self._streams, self._ends, strict=True):
            first = end - len(stream)
            if start < end and first < stop:
                parts.append(stream[max(start - first, 0) : stop - first])
        return np.concatenate(parts) if parts else np.zeros(0, self.dtype)


def _starts(size: int, limit: int = BLOCKS) -> list[int]:
    """Where the blocks of a sample begin: all of up to `limit`, else so many, spread evenly."""
    if -(-size // BLOCK) <= limit:
        return list(range(0, size, BLOCK))
    return np.linspace(0, size - BLOCK, limit).astype(int).tolist()


def sampled_sha256(path: Path) -> JsonObject:
    """{"bytes_on_disk", "sampled_sha256"}: of the whole file up to 32 MiB, of 512 blocks spread
    evenly over a larger one, which nobody wants to read through at each start."""
    size = path.stat().st_size
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        for start in _starts(size):
            file.seek(start)
            sha256.update(file.read(BLOCK))
    return {"bytes_on_disk": size, "sampled_sha256": sha256.hexdigest()}
