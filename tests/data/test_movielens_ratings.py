"""Ratings as a table: no rating in two splits, what is rare is unknown, people and films joined."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.data.movielens import CARD, COLUMNS, FILMS, INSIDE, PEOPLE
from moe_jax.data.movielens_ratings import (
    CATEGORIES,
    NUMBERS,
    MovieLensRatings,
)
from tests.data.archives import card_of

USERS, ITEMS = 30, 20


def rated():
    """user, film, rating, time: everybody rates all films but the last, which one person rates."""
    random = np.random.default_rng(0)
    rows = [
        (user, film, int(random.integers(1, 6)), 1000 + 50 * user + (7 * film + 3 * user) % 19)
        for user in range(1, USERS + 1)
        for film in range(1, ITEMS)
    ]
    return [*rows, (1, ITEMS, 5, 1)]


def wheel(without=()):
    ratings = ["\t".join(COLUMNS), *("\t".join(map(str, row)) for row in rated())]
    people = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    people += [
        f"{n}\t{20 + n}\t{'MF'[n % 2]}\t{'writer' if n % 3 else 'other'}\t0"
        for n in range(1, USERS + 1)
    ]
    films = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    films += [
        f'{n}\tA "film\t{1970 + n if n % 5 else ""}\t{"Drama Sci-Fi" if n % 2 else "unknown"}'
        for n in range(1, ITEMS + 1)
    ]
    files = {INSIDE: ratings, PEOPLE: people, FILMS: films}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, lines in files.items():
            if name not in without:
                archive.writestr(name, "\n".join(lines) + "\n")
    return out.getvalue()


@pytest.fixture
def data(tmp_path, monkeypatch):
    content = wheel()
    (tmp_path / "recbole.whl").write_bytes(content)
    monkeypatch.setattr(MovieLensRatings, "card", card_of(CARD, one=content))
    path = str(tmp_path / "recbole.whl")
    return MovieLensRatings(archive=path, data_dir=str(tmp_path / "data"))


def read_back(data):
    """user, film (0: unknown), rating, split of every row, by the values of the vocabulary."""
    found = []
    for split in data.splits:
        rows = data.open(split)
        users, films = (rows.vocabulary.categories[name] for name in ("user", "film"))
        for (user, film), rating in zip(
            rows.arrays["categories"][:, :2], rows.arrays["rating"], strict=True
        ):
            film -= len(users) + 1
            found.append(
                (
                    int(users[user - 1]) if user else 0,
                    int(films[film - 1]) if film else 0,
                    float(rating),
                    split,
                )
            )
    return found


@pytest.mark.parametrize("draw", ["ratings", "time"])
def test_no_rating_is_in_two_splits_and_none_is_lost(data, draw):
    data = replace(data, draw=draw)
    found = read_back(data)
    assert len(found) == len(rated()) == len({(u, f) for u, f, _, _ in found})
    stars = {(user, film): rating for user, film, rating, _ in rated()}
    stars[1, 0] = stars[1, ITEMS]
    assert all(stars[user, film] == rating for user, film, rating, _ in found)
    counts = [sum(split == of for *_, split in found) for of in data.splits]
    assert counts[0] > 400 and min(counts) > 25


def test_by_time_the_latest_are_held_out(data):
    found = read_back(replace(data, draw="time"))
    time = {(user, film): at for user, film, _, at in rated()}
    place = {split: n for n, split in enumerate(data.splits)}
    for person in range(2, USERS + 1):
        own = sorted((time[user, film], place[s]) for user, film, _, s in found if user == person)
        order = [split for _, split in own]
        assert order == sorted(order) and order.count(1) == order.count(2) == 1


def test_what_is_rare_is_unknown_in_training_too(data):
    rows = data.open("train")
    assert str(ITEMS) not in rows.vocabulary.categories["film"]
    assert "" not in rows.vocabulary.categories["film"]
    all_of_them = replace(data, least=1)
    kinds = {film for _, film, _, _ in read_back(all_of_them)}
    assert len(kinds) >= ITEMS - 1
    assert {film for _, film, _, _ in read_back(replace(data, least=10**6))} == {0}


def test_what_is_known_of_people_and_films_is_theirs(data):
    rows = replace(data, least=1, draw="time").open("train")
    mean, deviation = rows.vocabulary.numbers["age"]
    age = rows.arrays["numbers"][:, NUMBERS.index("age")] * deviation + mean
    users = rows.vocabulary.categories["user"]
    ids = rows.arrays["categories"]
    who = np.array([int(users[n - 1]) for n in ids[:, 0]])
    np.testing.assert_allclose(age, 20 + who, rtol=1e-4)
    gender = ids[:, CATEGORIES.index("gender")]
    assert len({(int(g), int(w % 2)) for g, w in zip(gender, who, strict=True)}) == 2
    films = rows.vocabulary.categories["film"]
    what = np.array([int(films[n - len(users) - 2]) for n in ids[:, 1]])
    mean, deviation = rows.vocabulary.numbers["Sci-Fi"]
    genre = rows.arrays["numbers"][:, NUMBERS.index("Sci-Fi")] * deviation + mean
    np.testing.assert_allclose(genre, what % 2, atol=1e-5)
    year = rows.arrays["numbers"][:, NUMBERS.index("year")]
    assert (year[what % 5 == 0] == 0).all()  # not known: the mean
    assert "rating" not in {*CATEGORIES, *NUMBERS}


def test_another_archive_and_another_draw_are_refused(data, tmp_path, monkeypatch):
    path = tmp_path / "recbole.whl"
    path.write_bytes(wheel() + b"x")
    with pytest.raises(UserError, match="its sha256 is"):
        data.open("train")
    content = wheel(without=(FILMS,))
    path.write_bytes(content)
    monkeypatch.setattr(MovieLensRatings, "card", card_of(CARD, one=content))
    with pytest.raises(UserError, match=r"it has no file recbole/.*ml-100k\.item"):
        data.open("train")
    assert {p.path for p in check(replace(data, draw="rows", least=0))} == {"draw", "least"}
