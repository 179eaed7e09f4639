"""Tables that are fetched: their columns are known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from moe_jax.data.fetch.dataset import FetchedFolder
from moe_jax.data.store import in_share
from moe_jax.data.tables import (
    Arrays,
    Cells,
    TableDataset,
    Vocabulary,
    arrays_of,
    save_arrays,
    saved_arrays,
)

Targets = Mapping[str, np.ndarray]


def drawn_split(name: str, held: float) -> str:
    """The split of what has this name, by its hash: a share of `held` validates, another tests."""
    if in_share(name, held):
        return "validation"
    return "test" if in_share(name, 2 * held) else "train"


@dataclass(frozen=True, kw_only=True)
class FetchedTable(FetchedFolder, TableDataset):
    """What such data sets share. A subclass says its columns and has its `extract` write the parts.

    ids: of all categories in the training part at most, with one more each for what it does not
    have.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    categories: ClassVar[tuple[str, ...]]
    numbers: ClassVar[tuple[str, ...]]
    targets: ClassVar[tuple[str, ...]]
    ids: ClassVar[int]

    def category_names(self) -> tuple[str, ...]:
        return self.categories

    def number_names(self) -> tuple[str, ...]:
        return self.numbers

    def target_names(self) -> tuple[str, ...]:
        return self.targets

    def vocabulary(self) -> int:
        return self.ids

    def write_parts(self, folder: Path, parts: Mapping[str, tuple[Cells, Targets, Arrays]]) -> None:
        """By split the columns as text, the targets, and arrays that are kept beside them."""
        vocabulary = Vocabulary.of(parts["train"][0], self.categories, self.numbers)
        vocabulary.save(folder)
        for split, (cells, targets, others) in parts.items():
            save_arrays(folder, split, {**arrays_of(vocabulary, cells, targets), **others})

    def table(self, split: str) -> tuple[Vocabulary, Arrays]:
        folder = self.opened_folder()
        names = ("categories", "numbers", *self.targets)
        return Vocabulary.read(folder), saved_arrays(folder, split, names)
