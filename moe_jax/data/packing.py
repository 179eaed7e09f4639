"""Packing: documents become one stream of tokens, the stream becomes fixed rows.

Each document is written as ``BOS tokens EOS``, one after the other. With S = sequence_length, row
i is the stream's tokens i S .. i S + S, so that a row shares its last token with the next: every
token of the stream but the first is the target of exactly one row, and none is lost. This is
"concatenate, then split": a document that does not end within its row goes on in the next one as a
segment of its own, and the rest of the last row is padding.

Which document a token belongs to follows from the EOS tokens, which no text contains; so a stream
is a flat file of ids and serves any sequence length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json, JsonObject
from moe_jax.data.order import place_of
from moe_jax.data.types import Tokenizer

CHUNK = 64  # documents encoded at a time


@dataclass(frozen=True)
class StreamInfo:
    """A stream of tokens on disk: little-endian ids without a header.

    bytes: of the documents' text in UTF-8. sha256: of the file.
    """

    documents: int
    tokens: int
    bytes: int
    dtype: str
    sha256: str

    def describe(self) -> JsonObject:
        return asdict(self)


def write_stream(
    path: Path,
    texts: Iterable[str],
    tokenizer: Tokenizer,
    advance: Callable[[int], None] = lambda documents: None,
) -> StreamInfo:
    """Encodes documents into a file. Empty texts are left out.

    advance: called with the number of documents that were read since the last call.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    documents = tokens = size = 0
    sha256 = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in _chunks(texts):
            kept = [text for text in chunk if text]
            for ids in tokenizer.encode_batch(kept):
                data = np.concatenate([before, ids, after]).astype(dtype).tobytes()
                file.write(data)
                sha256.update(data)
                tokens += len(data) // dtype.itemsize
            documents += len(kept)
            size += sum(len(text.encode("utf-8")) for text in kept)
            advance(len(chunk))
    return StreamInfo(documents, tokens, size, dtype.name, sha256.hexdigest())


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class Stream(Protocol):
    """An array of ids, or what can be sliced as one."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class PackedRows:
    """A stream as rows (see the module). `Rows` of types.py.

    stream: ids, usually mapped from a file. scatter: give the rows in a fixed scattered order.
    name: of the one domain. source: where the stream comes from, for errors. read: what was read to
    make it, in a few words, where that is known.
    """

    stream: Stream
    sequence_length: int
    tokenizer: Tokenizer
    fingerprint: JsonObject
    name: str
    scatter: bool
    source: str
    read: str = ""

    @property
    def domains(self) -> tuple[str, ...]:
        return (self.name,)

    def __len__(self) -> int:
        return -(-(len(self.stream) - 1) // self.sequence_length)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        place = place_of(index, len(self), self.scatter)
        start = place * self.sequence_length
        ids = self.stream[start : start + self.sequence_length + 1]
        require_ids(ids, self.tokenizer.vocab_size, self.source)
        tokens = np.full(self.sequence_length + 1, self.tokenizer.pad_id, np.int32)
        segments = np.zeros(self.sequence_length + 1, np.int32)
        tokens[: len(ids)] = ids
        segments[: len(ids)] = segments_of(ids, self.tokenizer.eos_id)
        return {"tokens": tokens, "segments": segments, "domain": np.zeros((), np.int32)}


def require_ids(ids: np.ndarray, vocab_size: int, source: str) -> None:
    """UserError where an id is none of the tokenizer's. ids: not empty."""
    least, largest = ids.min(), ids.max()
    if not 0 <= least <= largest < vocab_size:
        wrong = least if least < 0 else largest
        raise UserError(
            f"{source}: holds the id {wrong}, but the tokenizer has the ids 0 .. {vocab_size - 1}: "
            "another dtype, header_bytes or tokenizer is needed"
        )


def segments_of(ids: np.ndarray, eos_id: int | None) -> np.ndarray:
    """1 up to the first EOS, which belongs to its document, 2 up to the second, ..."""
    segments = np.ones(len(ids), np.int32)
    if eos_id is not None:
        segments[1:] += np.cumsum(ids[:-1] == eos_id, dtype=np.int32)
    return segments


def packed_rows(
    stream: Stream,
    *,
    sequence_length: int,
    tokenizer: Tokenizer,
    split: str,
    kind: str,
    content: Mapping[str, Json],
    source: str,
    read: str = "",
    remedy: str | None = None,
) -> PackedRows:
    """Rows of a stream, with their fingerprint. UserError where it does not fill one row.

    content: JSON that stands for the stream's ids. remedy: what makes the split larger.
    """
    if len(stream) < 2:
        raise UserError(f"{source}: the {split} split is empty" + (f"; {remedy}" if remedy else ""))
    if len(stream) <= sequence_length:
        raise UserError(
            f"{source}: the {split} split has {len(stream)} tokens in all, fewer than one row of "
            f"sequence_length + 1 = {sequence_length + 1}"
            + (f"; {remedy}, or a smaller data.sequence_length" if remedy else "")
        )
    fingerprint = {
        "kind": kind,
        "split": split,
        "packing": "concatenate, split",
        "sequence_length": sequence_length,
        "tokenizer": tokenizer.describe(),
        "content": dict(content),
    }
    return PackedRows(
        stream=stream,
        sequence_length=sequence_length,
        tokenizer=tokenizer,
        fingerprint=fingerprint,
        name=kind,
        scatter=split != "train",
        source=source,
        read=read,
    )
