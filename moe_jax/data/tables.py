"""Tables: rows of categories and numbers, and what is to be told of each row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import JsonObject
from moe_jax.data.order import place_of
from moe_jax.data.types import ArraySpec, require_split

VOCABULARY = "vocabulary.json"  # the values of each category, beside its arrays
NO_VALUE = float("nan")  # a target that is not known
UNKNOWN = 0  # the first id of each category: of values that the training part does not have

Cells = Mapping[str, Sequence[str]]  # the columns of a table by name, as text


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What the training part of a table says of its columns.

    categories: the values of each category, sorted. The ids of all of them lie one after the other,
    each category's values behind its UNKNOWN one. numbers: mean and deviation of each number.
    """

    categories: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, cells: Cells, categories: Sequence[str], numbers: Sequence[str]) -> Vocabulary:
        """Of the training part alone."""
        scales = {}
        for name in numbers:
            known = _numbers(cells[name])
            known = known[np.isfinite(known)]
            deviation = float(known.std()) if known.size else 0.0
            scales[name] = (float(known.mean()) if known.size else 0.0, deviation or 1.0)
        values = {name: tuple(sorted(set(cells[name]))) for name in categories}
        return cls(categories=values, numbers=scales)

    @property
    def ids(self) -> int:
        """Of all categories."""
        return sum(len(values) + 1 for values in self.categories.values())

    def ids_of(self, cells: Cells) -> np.ndarray:
        """int32 (rows, categories)."""
        columns, first = [], 0
        for name, values in self.categories.items():
            number = {value: first + 1 + n for n, value in enumerate(values)}
            columns.append([number.get(value, first + UNKNOWN) for value in cells[name]])
            first += len(values) + 1
        return np.array(columns, np.int32).reshape(len(columns), _rows(cells)).T

    def numbers_of(self, cells: Cells) -> np.ndarray:
        """float32 (rows, numbers), of mean 0 and deviation 1 over the training part; a number that
        is missing is the mean."""
        columns = [
            np.nan_to_num((_numbers(cells[name]) - mean) / deviation)
            for name, (mean, deviation) in self.numbers.items()
        ]
        return np.array(columns, np.float32).reshape(len(columns), _rows(cells)).T

    @classmethod
    def read(cls, folder: Path) -> Vocabulary:
        content = json.loads((folder / VOCABULARY).read_text("utf-8"))
        return cls(
            categories={name: tuple(values) for name, values in content["categories"].items()},
            numbers={name: (mean, width) for name, (mean, width) in content["numbers"].items()},
        )

    def save(self, folder: Path) -> None:
        content = {"categories": self.categories, "numbers": self.numbers}
        (folder / VOCABULARY).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _rows(cells: Cells) -> int:
    return len(next(iter(cells.values())))


def _numbers(column: Sequence[str]) -> np.ndarray:
    """float64; nan where there is none."""
    return np.array([_number(text) for text in column], np.float64)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return NO_VALUE


Arrays = dict[str, np.ndarray]  # the columns of a split by name


def arrays_of(vocabulary: Vocabulary, cells: Cells, targets: Mapping[str, np.ndarray]) -> Arrays:
    """What rows have: ids, scaled numbers, and targets by name."""
    return {
        "categories": vocabulary.ids_of(cells),
        "numbers": vocabulary.numbers_of(cells),
        **{name: np.asarray(values, np.float32) for name, values in targets.items()},
    }


def save_arrays(folder: Path, split: str, arrays: Arrays) -> None:
    for name, array in arrays.items():
        np.save(folder / f"{split}.{name}.npy", array.astype(array.dtype.newbyteorder("<")))


def saved_arrays(folder: Path, split: str, names: Iterable[str]) -> Arrays:
    return {name: np.load(folder / f"{split}.{name}.npy") for name in names}


@dataclass(frozen=True, kw_only=True)
class TableDataset:
    """A data set whose rows are those of a table. A subclass says its columns and has them
    (`table`)."""

    kind_name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "validation")

    def category_names(self) -> tuple[str, ...]:
        raise NotImplementedError

    def number_names(self) -> tuple[str, ...]:
        raise NotImplementedError

    def target_names(self) -> tuple[str, ...]:
        raise NotImplementedError

    def table(self, split: str) -> tuple[Vocabulary, Arrays]:
        """That of the training part, and the columns of a split. UserError where they are not
        there."""
        raise NotImplementedError

    def origin(self) -> JsonObject:
        """JSON that changes with where the table is from."""
        return {}

    def vocabulary(self) -> int | None:
        """Ids of all categories; None: opening tells."""
        return None

    def columns(self) -> dict[str, ArraySpec]:
        C, N = len(self.category_names()), len(self.number_names())
        features = {
            "categories": ArraySpec((C,), below=self.vocabulary()),
            "numbers": ArraySpec((N,), "float32"),
        }
        return {name: spec for name, spec in features.items() if spec.shape[0]} | {
            name: ArraySpec((), "float32", padding=NO_VALUE) for name in self.target_names()
        }

    def open(self, split: str) -> TableRows:
        require_split(split, self.splits)
        return TableRows(self, split)


class TableRows:
    """A split. `Rows` of types.py: categories int32 (C,), ids of all categories one after the
    other; numbers float32 (N,), scaled; each target float32 (), nan where it is not known. ids: how
    many there are."""

    tokenizer = None

    def __init__(self, dataset: TableDataset, split: str):
        self.vocabulary, arrays = dataset.table(split)
        names, self._scatter = tuple(dataset.columns()), split != "train"
        self.arrays = {name: arrays[name] for name in names}
        self.ids = self.vocabulary.ids
        self.domains = (dataset.kind_name,)
        sha256 = hashlib.sha256()
        for array in self.arrays.values():
            sha256.update(np.ascontiguousarray(array).tobytes())
        self.fingerprint: JsonObject = {
            "kind": dataset.kind_name,
            "split": split,
            "columns": list(names),
            "content": {**dataset.origin(), "rows": len(self), "sha256": sha256.hexdigest()},
        }
        if not len(self):
            raise UserError(f"{dataset.kind_name}: the {split} split is empty")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        place = place_of(index, len(self), self._scatter)
        return {name: np.asarray(array[place]) for name, array in self.arrays.items()}
