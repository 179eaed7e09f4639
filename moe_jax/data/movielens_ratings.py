"""MovieLens-100k as a table: what 943 people think of 1,682 films, a rating a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from moe_jax.config.fields import Rule, at_least, one_of
from moe_jax.data.fetched_table import FetchedTable, drawn_split
from moe_jax.data.movielens import MovieLens
from moe_jax.data.tables import Arrays, Vocabulary, arrays_of

GENRES = (
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War",
    "Western",
)  # fmt: skip
CATEGORIES = ("user", "film", "gender", "occupation")
NUMBERS = ("age", "year", *GENRES)
TARGETS = ("rating",)
HELD = 0.1  # of the ratings, each of those that validate and those that test
RARE = ""  # a person or a film of too few ratings
DRAWS = ("ratings", "time")
IDS = 2652  # of all categories at most: 943, 1682, 2 and 21, and one more each


@dataclass(frozen=True, kw_only=True)
class MovieLensRatings(MovieLens, FetchedTable):
    """The stars, 1 to 5, that somebody gave a film (`rating`), by both their ids, gender and
    occupation, age, year of the film and its 18 genres.

    draw: `ratings`, about 10 % of them validate and 10 % test, by the hash of person and film, as
    published figures have it (there in five parts); or `time`, of each person the last tenth tests
    and the tenth before validates, rounded down. least: people and films of fewer ratings in the
    training part are unknown ones, there too, so that an embedding is learnt of what is unknown.
    """

    kind_name: ClassVar[str] = "movielens_ratings"
    categories: ClassVar[tuple[str, ...]] = CATEGORIES
    numbers: ClassVar[tuple[str, ...]] = NUMBERS
    targets: ClassVar[tuple[str, ...]] = TARGETS
    ids: ClassVar[int] = IDS

    draw: str = "ratings"
    least: int = 3

    def check(self) -> Iterator[Rule]:
        yield from one_of(self, DRAWS, "draw")
        yield from at_least(self, 1, "least")

    def split_of(self, rating_R4: np.ndarray) -> np.ndarray:
        """The split of each rating: 0, 1, 2 of `splits`."""
        if self.draw == "ratings":
            drawn = (drawn_split(f"{user} {film}", HELD) for user, film in rating_R4[:, :2])
            return np.array([self.splits.index(split) for split in drawn])
        # Ratings stand by person, then time.
        count = np.bincount(rating_R4[:, 0])[rating_R4[:, 0]]
        first = np.searchsorted(rating_R4[:, 0], rating_R4[:, 0])
        behind = count - 1 - (np.arange(len(rating_R4)) - first)
        tenth = (count * HELD).astype(int)
        return np.where(behind < tenth, 2, np.where(behind < 2 * tenth, 1, 0))

    def table(self, split: str) -> tuple[Vocabulary, Arrays]:
        rating_R4, people, films = self.ratings(), self.told_of("people"), self.told_of("films")
        split_at = self.split_of(rating_R4)
        trained = rating_R4[split_at == 0]
        known = [
            {str(n) for n, count in Counter(trained[:, k].tolist()).items() if count >= self.least}
            for k in range(2)
        ]

        def cells(rows: np.ndarray) -> dict[str, list[str]]:
            users, items = ([str(n) for n in rows[:, k]] for k in range(2))
            own, its = [people[n] for n in users], [films[n] for n in items]
            genres = [film["class:token_seq"].split() for film in its]
            return {
                "user": [n if n in known[0] else RARE for n in users],
                "film": [n if n in known[1] else RARE for n in items],
                "gender": [person["gender:token"] for person in own],
                "occupation": [person["occupation:token"] for person in own],
                "age": [person["age:token"] for person in own],
                "year": [film["release_year:token"] for film in its],
                **{name: [str(int(name in of)) for of in genres] for name in GENRES},
            }

        found = Vocabulary.of(cells(trained), CATEGORIES, NUMBERS)
        values = {n: tuple(v for v in vs if v != RARE) for n, vs in found.categories.items()}
        vocabulary = replace(found, categories=values)
        rows = rating_R4[split_at == self.splits.index(split)]
        return vocabulary, arrays_of(vocabulary, cells(rows), {"rating": rows[:, 2]})
