"""Images and their maps of classes in files, as PASCAL VOC has them, and in prepared TFDS sets
(extra `vision`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule
from moe_jax.config.json_files import JsonObject
from moe_jax.config.paths import expanded
from moe_jax.data.image_folder import SUFFIXES, library
from moe_jax.data.maps import MapDataset
from moe_jax.data.rand_augment import PillowImage
from moe_jax.data.store import digest, in_share
from moe_jax.data.tfds_set import Examples, ImagesOfSet
from moe_jax.data.types import NO_LABEL

VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
SMALLEST = 0.5  # share of an image's side that a part of it in training has at least


@dataclass(frozen=True, kw_only=True)
class SizedMaps(MapDataset):
    """Images of any size, brought to that of a row: in validation their middle; in training a part
    of at least half of its sides, drawn each time. Images are scaled with antialiasing, classes by
    the nearest pixel.

    names: of the classes, by the numbers that the maps have from 0 on; a number beyond them (VOC's
    255) counts nowhere. first: the number of the first class, where that is not 0.
    """

    mean: float = 0.45
    deviation: float = 0.27
    names: tuple[str, ...] = VOC
    first: int = 0

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if len(self.names) < 2:
            yield "names", "must name the classes, two at least"

    def class_names(self) -> tuple[str, ...]:
        return self.names

    def classes(self) -> tuple[str, ...]:
        return self.names

    def fitted(
        self, image: PillowImage, mask: PillowImage, random: np.random.Generator | None, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """A part of both in the size of a row."""
        if image.size != mask.size:
            raise UserError(f"{name}: the image is {image.size}, its map {mask.size} pixels")
        size = (self.width, self.height)
        box = part_of(image.size, size, random)
        resampling = library().Resampling
        pixels = np.asarray(image.convert("RGB").resize(size, resampling.BICUBIC, box))
        numbers = np.asarray(mask.resize(size, resampling.NEAREST, box)).astype(np.int32)
        classes = numbers - self.first
        known = (classes >= 0) & (classes < len(self.names))
        return pixels, np.where(known, classes, NO_LABEL)


def part_of(
    whole: tuple[int, int], wanted: tuple[int, int], random: np.random.Generator | None
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a part in the shape that is wanted."""
    scale = min(whole[0] / wanted[0], whole[1] / wanted[1])
    where = 0.5, 0.5
    if random is not None:
        scale *= random.uniform(SMALLEST, 1.0)
        where = random.random(), random.random()
    width, height = wanted[0] * scale, wanted[1] * scale
    left, top = (whole[0] - width) * where[0], (whole[1] - height) * where[1]
    return left, top, left + width, top + height


@dataclass(frozen=True, kw_only=True)
class MapFolder(SizedMaps):
    """Images in `path`/`images` and, with the same names, maps of classes in `path`/`maps`: images
    of whole numbers, with or without a palette (.png).

    lists: a folder of `path` with train.txt and val.txt, which name the images of each split; where
    it is not there the share `validation_fraction` validates, chosen by the hash of the name.
    """

    kind_name: ClassVar[str] = "map_folder"

    path: str = ""
    images: str = "JPEGImages"
    maps_folder: str = "SegmentationClass"
    lists: str = "ImageSets/Segmentation"
    validation_fraction: float = 0.1

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not self.path:
            yield "path", "must name a folder with images and their maps, such as VOC2012"
        if not 0 < self.validation_fraction < 1:
            yield "validation_fraction", "must lie between 0 and 1"

    def description(self) -> str:
        return self.path

    @cached_property
    def _files(self) -> dict[str, tuple[Path, Path]]:
        """Image and map of each name."""
        root = expanded(self.path)
        for folder in (self.images, self.maps_folder):
            if not (root / folder).is_dir():
                raise UserError(f"data.path: no folder {root / folder}")
        masks = {file.stem: file for file in sorted((root / self.maps_folder).iterdir())}
        found = {
            file.stem: (file, masks[file.stem])
            for file in sorted((root / self.images).iterdir())
            if file.suffix.lower() in SUFFIXES and file.stem in masks
        }
        if not found:
            raise UserError(f"{root}: no image of {self.images} has a map in {self.maps_folder}")
        return found

    def identity(self) -> JsonObject:
        sizes = [(name, a.stat().st_size, b.stat().st_size) for name, (a, b) in self._files.items()]
        return {"files": digest(sizes), "validation_fraction": self.validation_fraction}

    def maps(self, split: str) -> FileMaps:
        file = expanded(self.path) / self.lists / f"{'train' if split == 'train' else 'val'}.txt"
        if file.is_file():
            names = file.read_text("utf-8").split()
            missing = [name for name in names if name not in self._files]
            if missing:
                raise UserError(f"{file}: no image and map of {missing[0]!r} in {self.path}")
        else:
            share = self.validation_fraction
            held = split == "validation"
            names = [name for name in self._files if in_share(name, share) == held]
        return FileMaps(self, [self._files[name] for name in names])


class FileMaps:
    """Images and maps of files, read when they are asked for."""

    def __init__(self, dataset: SizedMaps, files: Sequence[tuple[Path, Path]]):
        self._dataset, self._files = dataset, files

    def __len__(self) -> int:
        return len(self._files)

    def window(
        self, index: int, random: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        image, mask = (_opened(file) for file in self._files[index])
        return self._dataset.fitted(image, mask, random, str(self._files[index][0]))


def _opened(file: Path) -> Any:
    try:
        with library().open(file) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{file}: cannot be read as an image ({error})") from error


@dataclass(frozen=True, kw_only=True)
class TfdsMaps(ImagesOfSet, SizedMaps):
    """A prepared TFDS set with an image and a map of classes, such as oxford_iiit_pet (names: pet,
    background, border; first: 1).

    map_feature: the feature of the map.
    """

    kind_name: ClassVar[str] = "tfds_maps"
    example: ClassVar[str] = "oxford_iiit_pet"

    map_feature: str = "segmentation_mask"

    def maps(self, split: str) -> SetMaps:
        self.found.require("Image", self.feature, "image (data.feature)")
        self.found.require("Image", self.map_feature, "image (data.map_feature)")
        source = self.found.source(getattr(self, split), (self.feature, self.map_feature))
        return SetMaps(self, source)


class SetMaps:
    """Images and maps of a prepared TFDS set."""

    def __init__(self, dataset: TfdsMaps, source: Examples):
        self._dataset, self._source = dataset, source

    def __len__(self) -> int:
        return len(self._source)

    def window(
        self, index: int, random: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        d, row = self._dataset, self._source[index]
        image = library().fromarray(row[d.feature])
        mask = library().fromarray(row[d.map_feature][..., 0])
        return d.fitted(image, mask, random, f"{d.description()}, example {index}")
