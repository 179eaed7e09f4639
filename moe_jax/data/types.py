"""What stands between a dataset and whoever reads it: `Dataset`, `Rows`, `Tokenizer`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from moe_jax.config.errors import UserError

SPLITS = ("train", "validation")


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

    def describe(self) -> dict[str, Any]:
        """JSON that names the tokenizer: two with the same description give the same ids."""
        ...


class Rows(Protocol):
    """An opened split: fixed rows of S + 1 tokens with random access.

    ``rows[i]`` is a dict of numpy arrays: tokens int32 (S+1,); segments int32 (S+1,): 1, 2, ...
    within a row, 0 for padding; domain int32 (): index in `domains`; and, where it is known,
    source int32 (S+1,): the planted source of every token.

    A split other than "train" gives its rows in a fixed scattered order, so that the first ones
    are a fair sample. Rows of a mixture have, besides, ``mixture``: (rows, weight) of each part,
    which lie one after the other; `Pipeline` draws from them by weight.
    """

    tokenizer: Any  # a Tokenizer
    fingerprint: Mapping[str, Any]  # JSON: what must not change between a run and its resumption
    domains: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class Dataset(Protocol):
    """A dataset's config: a frozen, keyword-only dataclass.

    It may have ``vocabulary()``, how many ids its tokenizer has, for model.vocab_size = 0. A
    dataset that is prepared before use has also ``prepare(progress)``, which does nothing where
    that is done, and ``stored_in()``, the folders that it fills.
    """

    sequence_length: int

    def open(self, split: str) -> Rows:
        """Opens "train" or "validation"; raises UserError where it is not prepared or empty."""
        ...


def require_split(split: str, splits: Sequence[str] = SPLITS) -> None:
    """UserError for a split that is not there."""
    if split not in splits:
        raise UserError(f"no split {split!r}; the dataset has {', '.join(splits)}")
