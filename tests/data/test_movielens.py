"""MovieLens: histories in the order of time, the last films held out, nothing seen twice."""

from __future__ import annotations

import io
import itertools
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from moe_jax.config.errors import UserError
from moe_jax.data.histories import HistoryFile
from moe_jax.data.movielens import CARD, COLUMNS, FILMS, INSIDE, PEOPLE, MovieLens100k
from tests.data.archives import card_of


def wheel(lines):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(INSIDE, "\n".join(["\t".join(COLUMNS), *lines]) + "\n")
        archive.writestr(PEOPLE, "user_id:token\tage:token\n1\t30\n")
        films = [f"{n}\tFilm {n}" for n in range(1, 200)]
        archive.writestr(FILMS, "\n".join(["item_id:token\tmovie_title:token_seq", *films]) + "\n")
    return out.getvalue()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Person u watches the films 20 u + 1, 20 u + 2, ... one after the other; lines are drawn."""
    lines = [
        f"{user}\t{20 * user + n}\t{1 + n % 5}\t{1000 + n}"
        for user in range(1, 8)
        for n in range(1, 4 + user)
    ]
    lines = [lines[n] for n in np.random.default_rng(0).permutation(len(lines))]
    content = wheel(lines)
    (tmp_path / "recbole.whl").write_bytes(content)
    monkeypatch.setattr(MovieLens100k, "card", card_of(CARD, one=content))
    path = str(tmp_path / "recbole.whl")
    return MovieLens100k(archive=path, data_dir=str(tmp_path / "data"), sequence_length=4)


def test_films_stand_in_the_order_of_time(data):
    assert [list(films) for films in data.films()] == [
        [20 * user + n for n in range(1, 4 + user)] for user in range(1, 8)
    ]


def test_films_have_titles_by_their_numbers(data):
    names = data.open("train").names
    assert len(names) == 1683 and names[0] == "" and names[21] == "Film 21"


def test_the_last_films_are_held_out_and_in_no_other_split(data):
    splits = {split: data.open(split) for split in ("train", "validation", "test")}
    targets = {}
    for split, rows in splits.items():
        every = [rows[i] for i in range(len(rows))]
        found = set()
        for row in every:
            films = row["tokens"][row["segments"] > 0]
            if split == "train":
                assert row["held"] == -1 and not row["seen"].any()
                found |= set(films.tolist())
            else:
                place = int(row["held"])
                target = int(row["tokens"][place + 1])
                assert target == films[-1] and not row["seen"][target]
                watched = np.flatnonzero(row["seen"])
                user, n = divmod(target, 20)
                assert watched.tolist() == [20 * user + i for i in range(1, n)]
                assert films[:-1].tolist() == watched[-4:].tolist()
                found.add(target)
        targets[split] = found
    assert targets["test"] == {20 * user + 3 + user for user in range(1, 8)}
    assert targets["validation"] == {20 * user + 2 + user for user in range(1, 8)}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not targets[one] & targets[other]


def test_each_step_of_a_history_trains_once(data):
    rows, steps = data.open("train"), []
    for i in range(len(rows)):
        films = rows[i]["tokens"][rows[i]["segments"] > 0].tolist()
        steps += itertools.pairwise(films)
    wanted = [
        (20 * user + n, 20 * user + n + 1) for user in range(1, 8) for n in range(1, 1 + user)
    ]
    assert sorted(steps) == sorted(wanted)


def test_another_archive_is_refused(data, tmp_path, monkeypatch):
    path = tmp_path / "recbole.whl"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="its sha256 is"):
        data.open("train")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a", "b")
    path.write_bytes(out.getvalue())
    monkeypatch.setattr(MovieLens100k, "card", card_of(CARD, one=out.getvalue()))
    with pytest.raises(UserError, match=r"it has no file recbole/.*ml-100k\.inter"):
        replace(data).open("train")


def test_histories_of_a_file_of_ones_own(tmp_path):
    lines = [f"u{u},i{(u + n) % 9},{n}" for u in range(5) for n in range(6)]
    (tmp_path / "a.csv").write_text("user,item,time\n" + "\n".join(reversed(lines)) + "\n")
    data = HistoryFile(path=str(tmp_path / "a.csv"), items=9, sequence_length=4)
    rows = [data.open("test")[n] for n in range(5)]
    # u0 has i0 ... i5, numbered from 1
    assert [2, 3, 4, 5, 6] in [row["tokens"].tolist() for row in rows]
    assert all(row["seen"].sum() == 5 and row["seen"].shape == (10,) for row in rows)
    for changes, message in (
        ({"items": 8}, "data.items: must be at least the 9"),
        ({"item": "film"}, r"data\.item: .* has no column film; it has user, item, time"),
        ({"time": "user"}, "data.time = user"),
    ):
        with pytest.raises(UserError, match=message):
            replace(data, **changes).open("train")
    (tmp_path / "a.csv").write_text("user,item,time\nu,i,1\n")
    with pytest.raises(UserError, match="train split is empty: histories have 3 items"):
        data.open("train")
