"""The datasets that a config can name: a table of dataclasses, each of which opens a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Rows(Protocol):
    """An opened split: fixed rows of S+1 tokens with random access.

    ``rows[i]`` is a dict of numpy arrays: tokens int32 (S+1,); segments int32 (S+1,), 1, 2, ...
    within a row, 0 for padding; domain int32 (): the source of the row; and, where known,
    source int32 (S+1,): the planted source of every token.
    """

    tokenizer: Any
    fingerprint: Mapping[str, Any]  # JSON: what must not change between a run and its resumption
    domains: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class Dataset(Protocol):
    """A dataset's config: a frozen dataclass."""

    sequence_length: int

    def open(self, split: str) -> Rows:
        """Opens "train" or "validation"; raises UserError where it is not prepared or empty."""
        ...


@dataclass(frozen=True, kw_only=True)
class StdlibText:
    """The text of the running Python's standard library, by package."""

    sequence_length: int = 256

    def open(self, split: str) -> Rows:
        raise NotImplementedError


DATASETS: dict[str, type] = {"stdlib_text": StdlibText}
