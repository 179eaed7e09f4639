"""MovieLens-100k: what 943 people watched, in which order, and how they rated it."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least
from moe_jax.data.fetch.archives import Card
from moe_jax.data.fetch.dataset import FetchedFolder
from moe_jax.data.fetch.pip import PipArchive
from moe_jax.data.histories import HistoryRows, histories, history_columns
from moe_jax.data.types import ArraySpec

INSIDE = "recbole/dataset_example/ml-100k/ml-100k.inter"
PEOPLE, FILMS = (INSIDE.removesuffix("inter") + name for name in ("user", "item"))
COLUMNS = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
ITEMS = 1682  # numbered from 1; 0 is none
CARD = Card(
    title="MovieLens-100k: 100,000 ratings of 1,682 films by 943 people, with their times, and "
    "what is known of both",
    source="GroupLens, University of Minnesota (Harper and Konstan, 2015), as RecBole has it",
    license="research use only, as GroupLens' README says",
    terms="Not to be given on without permission; say where it is from; no endorsement is implied",
    archives=(
        PipArchive(
            name="recbole",
            version="1.2.1",
            file="recbole-1.2.1-py3-none-any.whl",
            sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        ),
    ),
    reading=2,
)


@dataclass(frozen=True, kw_only=True)
class MovieLens(FetchedFolder):
    """What the kinds of this data set share: one folder of what was read."""

    card: ClassVar[Card] = CARD
    source_name: ClassVar[str] = "movielens_100k"

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        (path,) = archives.values()
        np.save(folder / "ratings.npy", read_ratings(path))
        for name, inside in (("people", PEOPLE), ("films", FILMS)):
            rows = read_rows(path, inside)
            (folder / f"{name}.json").write_text(json.dumps(rows, indent=0) + "\n", "utf-8")

    def ratings(self) -> np.ndarray:
        """int32 (100,000, 4): user, item, rating, time; by user, then time, then item."""
        found: np.ndarray = np.load(self.opened_folder() / "ratings.npy")
        return found

    def told_of(self, name: str) -> dict[str, dict[str, str]]:
        """What is known of "people" or "films", by their numbers."""
        found: dict[str, dict[str, str]] = json.loads(
            (self.opened_folder() / f"{name}.json").read_text("utf-8")
        )
        return found


@dataclass(frozen=True, kw_only=True)
class MovieLens100k(MovieLens):
    """Histories of films in the order in which somebody rated them.

    Leave one out by time (data/histories.py); films of one time stand in the order of their
    numbers. sequence_length: S, films of a row that a model reads.
    """

    kind_name: ClassVar[str] = "movielens_100k"

    sequence_length: int = 64

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "sequence_length")

    def vocabulary(self) -> int:
        return ITEMS + 1

    def columns(self) -> dict[str, ArraySpec]:
        return history_columns(self.sequence_length, ITEMS)

    def films(self) -> list[np.ndarray]:
        """Of each person, in their order."""
        user, item, _, time = self.ratings().T
        return histories(user, item, time)

    def open(self, split: str) -> HistoryRows:
        films = self.told_of("films")
        titles = [films.get(str(n), {}).get("movie_title:token_seq", "") for n in range(ITEMS + 1)]
        return HistoryRows(
            self.kind_name, self.films(), titles, self.sequence_length, split, self.origin()
        )


def read_ratings(wheel: Path) -> np.ndarray:
    with zipfile.ZipFile(wheel) as archive:
        try:
            content = archive.read(INSIDE).decode("utf-8")
        except KeyError as error:
            raise UserError(f"{wheel}: it has no file {INSIDE}") from error
    rows = list(csv.reader(io.StringIO(content), delimiter="\t"))
    if tuple(rows[0]) != COLUMNS:
        raise UserError(f"{wheel}: {INSIDE} has other columns: {', '.join(rows[0])}")
    ratings = np.array([[int(float(cell)) for cell in row] for row in rows[1:]], np.int32)
    user, item, _, time = ratings.T
    return ratings[np.lexsort((item, time, user))]


def read_rows(wheel: Path, inside: str) -> dict[str, dict[str, str]]:
    """The rows of a file by their first column."""
    with zipfile.ZipFile(wheel) as archive:
        try:
            content = archive.read(inside).decode("utf-8")
        except KeyError as error:
            raise UserError(f"{wheel}: it has no file {inside}") from error
    rows = csv.DictReader(io.StringIO(content), delimiter="\t", quoting=csv.QUOTE_NONE)
    return {next(iter(row.values())): row for row in rows}
