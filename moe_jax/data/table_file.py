"""A table of the user's own, a .csv or .tsv file whose first row names the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least
from moe_jax.config.paths import expanded
from moe_jax.data.store import in_share
from moe_jax.data.tables import Arrays, TableDataset, Vocabulary, arrays_of

SUFFIXES = {".csv": ",", ".tsv": "\t"}
MISSING = ("", "NA", "nan", "NaN", "null")  # of targets; a category has them as values


@dataclass(frozen=True, kw_only=True)
class TableFile(TableDataset):
    """Rows of a file.

    path: of the .csv or .tsv. categories, numbers, targets: names of its columns. A target is a
    number, or missing. validation: a file of its own; else `validation_fraction` of the rows, drawn
    by the hash of a row or, with `together` (the name of a column: a person, a date), of its value
    there, which is then in one split only.
    """

    kind_name: ClassVar[str] = "table"

    path: str = ""
    categories: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    validation: str | None = None
    validation_fraction: float = 0.1
    together: str | None = None

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "validation_fraction")
        if not self.validation_fraction < 1:
            yield "validation_fraction", "must be below 1"
        names = (*self.categories, *self.numbers, *self.targets)
        if len(set(names)) < len(names):
            yield "targets", "names a column twice, or a feature"
        if not self.categories and not self.numbers:
            yield "categories", "must name a column, or data.numbers"
        if {"categories", "numbers"} & set(self.targets):
            yield "targets", "must not be called categories or numbers, which are a row's features"

    def category_names(self) -> tuple[str, ...]:
        return self.categories

    def number_names(self) -> tuple[str, ...]:
        return self.numbers

    def target_names(self) -> tuple[str, ...]:
        return self.targets

    def table(self, split: str) -> tuple[Vocabulary, Arrays]:
        wanted = {
            "categories": self.categories,
            "numbers": self.numbers,
            "targets": self.targets,
            "together": (self.together,) if self.together else (),
        }
        rows = read_table(self.path, "data.path", wanted)
        if self.validation is None:
            held = [in_share(self._drawn_by(row), self.validation_fraction) for row in rows]
            parts = {
                name: [row for row, is_held in zip(rows, held, strict=True) if is_held == wanted]
                for name, wanted in (("train", False), ("validation", True))
            }
        else:
            own = read_table(self.validation, "data.validation", wanted)
            parts = {"train": rows, "validation": own}
        cells = {name: self._cells(part) for name, part in parts.items()}
        vocabulary = Vocabulary.of(cells["train"], self.categories, self.numbers)
        targets = {
            name: np.array([_target(text, name, self.path) for text in cells[split][name]])
            for name in self.targets
        }
        return vocabulary, arrays_of(vocabulary, cells[split], targets)

    def _drawn_by(self, row: Mapping[str, str]) -> str:
        return row[self.together] if self.together else repr(sorted(row.items()))

    def _cells(self, rows: list[dict[str, str]]) -> dict[str, list[str]]:
        names = (*self.categories, *self.numbers, *self.targets)
        return {name: [row[name] for row in rows] for name in names}


def read_table(
    given: str, setting: str, wanted: Mapping[str, Sequence[str]]
) -> list[dict[str, str]]:
    """The rows of a .csv or .tsv file. setting: which names it. wanted: by settings below data, the
    columns that it must have. UserError where it is no such file."""
    path = expanded(given)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{setting}: must be a .csv or .tsv file, not {given!r}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=SUFFIXES[path.suffix.lower()], strict=True)
            there = reader.fieldnames or []
            for name, columns in wanted.items():
                if missing := [column for column in columns if column not in there]:
                    raise UserError(
                        f"data.{name}: {path} has no column {', '.join(missing)}; it has "
                        f"{', '.join(there) or 'none'}"
                    )
            rows = list(reader)
    except FileNotFoundError as error:
        raise UserError(f"{setting}: no file {path}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no table of text in UTF-8 ({error})") from error
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"{path}: row {number} has another number of fields than the first")
    return rows


def _target(text: str, name: str, path: str) -> float:
    if text.strip() in MISSING:
        return float("nan")
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{path}: the target {name} is {text!r}, which is no number") from error
