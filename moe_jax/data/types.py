"""What stands between a dataset and whoever reads it: `Dataset`, `Rows`, `Tokenizer`, columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json, JsonObject

SPLITS = ("train", "validation")
NO_LABEL = -1  # the class of rows, or pixels, that nothing counts


class Tokenizer(Protocol):
    """Text to ids and back, without loss.

    bytes_per_token_V: int32 (vocab_size,), the bytes of text that an id stands for, 0 for a
    special; adding them up over the ids of a text gives the text's bytes in UTF-8.
    special_ids: ids that `encode` never gives. bos_id and eos_id stand around each document of a
    stream; None where the ids have no such special.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    special_ids: tuple[int, ...]
    bytes_per_token_V: np.ndarray

    def encode(self, text: str) -> np.ndarray:
        """int32 ids of a text, without specials."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of many, where possible at once."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; specials give nothing, broken UTF-8 gives replacement characters."""
        ...

    def describe(self) -> JsonObject:
        """JSON that names the tokenizer: two with the same description give the same ids."""
        ...


@dataclass(frozen=True)
class ArraySpec:
    """A column of a batch, whose first axis are the rows: what a row has of it.

    padding: stands in rows that fill up a last batch, which nothing counts. below: integers lie
    in 0 .. below - 1; None: of any size, or no integers.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "int32"
    padding: float = 0
    below: int | None = None

    def filled(self, rows: int) -> np.ndarray:
        """So many rows of padding."""
        return np.full((rows, *self.shape), self.padding, self.dtype)


Columns = Mapping[str, ArraySpec]

# Beside the columns of a batch, where it has such rows: bool (B,), the rows that only fill it up.
FILLS = "fills"
NO_ROW = -1  # the number of such a row


def text_columns(length: int) -> dict[str, ArraySpec]:
    """Packed rows of so many ids: segments count from 1 within a row, 0 is padding."""
    return {
        "tokens": ArraySpec((length,)),
        "segments": ArraySpec((length,)),
        "domain": ArraySpec(),
    }


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What a model and a task must know of opened data, beside its columns.

    tokenizer: of text; None: no text. classes: the names of what `label` counts. domains: of what
    `domain` counts. rows_by_domain: how many rows of this split each has; (): not known. ids: of
    the categories of a table; 0: none.
    """

    tokenizer: Tokenizer | None = None
    classes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    rows_by_domain: tuple[int, ...] = ()
    ids: int = 0

    @classmethod
    def of(cls, rows: Any) -> DataInfo:
        """Of an opened split, or of a tokenizer alone."""
        if isinstance(rows, DataInfo):
            return rows
        if hasattr(rows, "fingerprint"):
            return cls(
                tokenizer=getattr(rows, "tokenizer", None),
                classes=tuple(getattr(rows, "classes", ())),
                domains=tuple(rows.domains),
                rows_by_domain=tuple(getattr(rows, "rows_by_domain", ())),
                ids=getattr(rows, "ids", 0),
            )
        return cls(tokenizer=rows)


def described(rows: Rows) -> JsonObject | None:
    """The tokenizer of an opened split, as a fingerprint has it; None where it has none."""
    tokenizer = DataInfo.of(rows).tokenizer
    return None if tokenizer is None else tokenizer.describe()


class Rows(Protocol):
    """An opened split: fixed rows with random access.

    ``rows[i]`` is a dict of numpy arrays, as the dataset's `columns_of` says; of text for the next
    token: tokens int32 (S+1,); segments int32 (S+1,): 1, 2, ... within a row, 0 for padding;
    domain int32 (): index in `domains`; and, where it is known, source int32 (S+1,): the planted
    source of every token. Rows with a ``label`` have, besides, `classes`, the labels' names.

    A split other than "train" gives its rows in a fixed scattered order, so that the first ones
    are a fair sample. Rows of a mixture have, besides, ``mixture``: (rows, weight) of each part,
    which lie one after the other; `Pipeline` draws from them by weight.
    """

    @property
    def tokenizer(self) -> Any:
        """A `Tokenizer`; None where there is no text."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, Json]:
        """What must not change between a run and its resumption."""
        ...

    @property
    def domains(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class Dataset(Protocol):
    """A dataset's config: a frozen, keyword-only dataclass.

    Rows that are not the packed text of `text_columns(sequence_length + 1)` are described by a
    method ``columns()``. It may have ``vocabulary()``, how many ids its tokenizer has, for
    model.vocab_size = 0, and ``class_names()``. A dataset that is prepared before use has also
    ``prepare(progress)``, which does nothing where that is done, and ``stored_in()``, the folders
    that it fills.
    """

    def open(self, split: str) -> Rows:
        """Opens "train" or "validation"; raises UserError where it is not prepared or empty."""
        ...


def require_split(split: str, splits: Sequence[str] = SPLITS) -> None:
    """UserError for a split that is not there."""
    if split not in splits:
        raise UserError(f"no split {split!r}; the dataset has {', '.join(splits)}")


def columns_of(dataset: Any) -> Columns:
    """What each row of a dataset has, by its settings alone."""
    own = getattr(dataset, "columns", None)
    return text_columns(dataset.sequence_length + 1) if own is None else own()
