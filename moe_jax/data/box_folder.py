"""Images and their objects in files, as COCO and as PASCAL VOC have them, and in prepared TFDS sets
(extra `vision`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule
from moe_jax.config.json_files import JsonObject, read_object
from moe_jax.config.paths import expanded
from moe_jax.data.boxes import Annotated, BoxDataset, too_many, within
from moe_jax.data.image_folder import SUFFIXES, library
from moe_jax.data.map_folder import VOC, part_of
from moe_jax.data.rand_augment import PillowImage
from moe_jax.data.store import digest, in_share
from moe_jax.data.tfds_set import Examples, ImagesOfSet

Objects = list[tuple[int, float, float, float, float]]  # class, left, top, right, bottom in pixels


@dataclass(frozen=True, kw_only=True)
class SizedBoxes(BoxDataset):
    """Images of any size, brought to that of a row: in validation the whole image, whatever its
    shape, since boxes are shares of its sides; in training a part of at least half of its sides,
    drawn each time.

    least_seen: an object of which a part shows less, as a share of its box, is none there.
    """

    height: int = 96
    width: int = 96
    mean: float = 0.45
    deviation: float = 0.27
    max_objects: int = 100
    least_seen: float = 0.3

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not 0 < self.least_seen <= 1:
            yield "least_seen", "must lie between 0 and 1"

    def fitted(
        self, image: PillowImage, objects: Objects, random: np.random.Generator | None
    ) -> Annotated:
        """A part of the image in the size of a row, with its objects."""
        size = (self.width, self.height)
        part = (0.0, 0.0, float(image.size[0]), float(image.size[1]))
        if random is not None:
            part = part_of(image.size, size, random)
        resized = image.convert("RGB").resize(size, library().Resampling.BICUBIC, part)
        table = np.asarray(objects, np.float64).reshape(-1, 5)
        corner_N4 = within(table[:, 1:], part)
        seen = _areas(corner_N4) >= self.least_seen * _areas(table[:, 1:])
        seen &= _areas(corner_N4) > 0
        scale = [self.width / (part[2] - part[0]), self.height / (part[3] - part[1])]
        return Annotated(
            np.asarray(resized), (corner_N4 * [*scale, *scale])[seen], table[seen, 0].astype(int)
        )


def _areas(corner_N4: np.ndarray) -> np.ndarray:
    areas: np.ndarray = np.prod(np.maximum(corner_N4[:, 2:] - corner_N4[:, :2], 0), axis=1)
    return areas


class FileBoxes:
    """Images of files, read when they are asked for, with their objects."""

    def __init__(self, dataset: SizedBoxes, files: Sequence[tuple[Path, Objects]]):
        self._dataset, self._files = dataset, files
        most = max(range(len(files)), key=lambda n: len(files[n][1]), default=None)
        if most is not None and (count := len(files[most][1])) > dataset.max_objects:
            raise UserError(too_many(dataset, self.name(most), count))

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return str(self._files[index][0])

    def view(self, index: int, random: np.random.Generator | None) -> Annotated:
        file, objects = self._files[index]
        try:
            with library().open(file) as image:
                return self._dataset.fitted(image, objects, random)
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{file}: cannot be read as an image ({error})") from error


@dataclass(frozen=True, kw_only=True)
class CocoFolder(SizedBoxes):
    """Images and instances as COCO has them: in `path`/annotations a JSON of each split, whose
    images are in a folder of `path`. Crowds (iscrowd = 1) are left out, so that a detection of one
    of them is a false one here.

    train, validation: the two JSON files; train_images, validation_images: the two folders.
    """

    kind_name: ClassVar[str] = "coco_folder"

    path: str = ""
    train: str = "annotations/instances_train2017.json"
    validation: str = "annotations/instances_val2017.json"
    train_images: str = "train2017"
    validation_images: str = "val2017"

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not self.path:
            yield "path", "must name a folder with annotations/ and images, as COCO's"

    def description(self) -> str:
        return self.path

    @cached_property
    def _tables(self) -> dict[str, JsonObject]:
        found = {}
        for split in ("train", "validation"):
            file = expanded(self.path) / getattr(self, split)
            try:
                found[split] = read_object(file)
            except FileNotFoundError as error:
                raise UserError(f"{file}: no such file (data.{split})") from error
        return found

    @cached_property
    def _categories(self) -> dict[int, str]:
        """Of both splits, by id."""
        found: dict[int, str] = {}
        for split, table in self._tables.items():
            for one in _list_of(table, "categories", self._file(split)):
                found[int(one["id"])] = str(one["name"])
        return dict(sorted(found.items()))

    def _file(self, split: str) -> str:
        return str(expanded(self.path) / getattr(self, split))

    def classes(self) -> tuple[str, ...]:
        return tuple(self._categories.values())

    def identity(self) -> JsonObject:
        return {"tables": digest(self._tables)}

    def annotated(self, split: str) -> FileBoxes:
        table, file = self._tables[split], self._file(split)
        number = {id_: n for n, id_ in enumerate(self._categories)}
        folder = expanded(self.path) / getattr(self, f"{split}_images")
        objects: dict[Any, Objects] = {}
        names: dict[Any, Path] = {}
        try:
            for image in _list_of(table, "images", file):
                names[image["id"]], objects[image["id"]] = folder / image["file_name"], []
            for one in _list_of(table, "annotations", file):
                left, top, width, height = (float(x) for x in one["bbox"])
                if not one.get("iscrowd", 0) and width > 0 and height > 0:
                    corner = (left, top, left + width, top + height)
                    objects[one["image_id"]].append((number[one["category_id"]], *corner))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: not as COCO has it ({error!r})") from error
        return FileBoxes(self, [(names[key], objects[key]) for key in names])


def _list_of(table: JsonObject, name: str, file: str) -> list[Any]:
    value = table.get(name)
    if not isinstance(value, list):
        raise UserError(f"{file}: it has no list {name!r}, as COCO has it")
    return value


@dataclass(frozen=True, kw_only=True)
class VocFolder(SizedBoxes):
    """Images and objects as PASCAL VOC has them: `path`/JPEGImages and, with the same names,
    `path`/Annotations/NAME.xml. Objects that are marked difficult are left out.

    names: of the classes. lists: a folder of `path` with train.txt and val.txt, which name the
    images of each split; where it is not there the share `validation_fraction` validates, chosen by
    the hash of the name.
    """

    kind_name: ClassVar[str] = "voc_folder"

    path: str = ""
    images: str = "JPEGImages"
    annotations: str = "Annotations"
    lists: str = "ImageSets/Main"
    names: tuple[str, ...] = VOC[1:]
    validation_fraction: float = 0.1

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not self.path:
            yield "path", "must name a folder with images and their annotations, such as VOC2012"
        if not self.names:
            yield "names", "must name the classes"
        if not 0 < self.validation_fraction < 1:
            yield "validation_fraction", "must lie between 0 and 1"

    def description(self) -> str:
        return self.path

    def class_names(self) -> tuple[str, ...]:
        return self.names

    def classes(self) -> tuple[str, ...]:
        return self.names

    @cached_property
    def _files(self) -> dict[str, tuple[Path, Objects]]:
        """Image and objects of each name."""
        root = expanded(self.path)
        for folder in (self.images, self.annotations):
            if not (root / folder).is_dir():
                raise UserError(f"no folder {root / folder}")
        found = {
            file.stem: (file, self._objects(note))
            for file in sorted((root / self.images).iterdir())
            if file.suffix.lower() in SUFFIXES
            for note in [root / self.annotations / f"{file.stem}.xml"]
            if note.is_file()
        }
        if not found:
            raise UserError(f"{root}: no image of {self.images} has an .xml in {self.annotations}")
        return found

    def _objects(self, file: Path) -> Objects:
        try:
            root = ElementTree.parse(file).getroot()
            found = []
            for one in root.iter("object"):
                name = (one.findtext("name") or "").strip()
                if name not in self.names:
                    raise UserError(f"{file}: {name!r} is none of data.names")
                box = one.find("bndbox")
                texts = [box.findtext(key) if box is not None else None for key in CORNERS]
                left, top, right, bottom = (float(text or "") for text in texts)
                if one.findtext("difficult", "0").strip() != "1" and right > left and bottom > top:
                    # Pixels count from 1, and the last one belongs to the box.
                    found.append((self.names.index(name), left - 1, top - 1, right, bottom))
            return found
        except (ElementTree.ParseError, ValueError, OSError) as error:
            raise UserError(f"{file}: cannot be read as an annotation of VOC ({error})") from error

    def identity(self) -> JsonObject:
        content = [(name, file.stat().st_size, o) for name, (file, o) in self._files.items()]
        return {"files": digest(content), "validation_fraction": self.validation_fraction}

    def annotated(self, split: str) -> FileBoxes:
        file = expanded(self.path) / self.lists / f"{'train' if split == 'train' else 'val'}.txt"
        if file.is_file():
            names = file.read_text("utf-8").split()
            missing = [name for name in names if name not in self._files]
            if missing:
                raise UserError(f"{file}: no image and .xml of {missing[0]!r} in {self.path}")
        else:
            share = self.validation_fraction
            held = split == "validation"
            names = [name for name in self._files if in_share(name, share) == held]
        return FileBoxes(self, [self._files[name] for name in names])


CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, kw_only=True)
class TfdsBoxes(ImagesOfSet, SizedBoxes):
    """A prepared TFDS set with an image and a sequence of objects, each with a box and a class,
    such as coco/2017 and voc/2012.

    objects: the feature of the objects; box, label: of each. Crowds and what is marked difficult
    are left out.
    """

    kind_name: ClassVar[str] = "tfds_boxes"
    example: ClassVar[str] = "coco/2017"

    objects: str = "objects"
    box: str = "bbox"
    label: str = "label"

    def classes(self) -> tuple[str, ...]:
        features = dict(self.found.builder.info.features.items())
        inner = dict(getattr(features.get(self.objects), "feature", None) or {})
        if self.label not in inner or self.box not in inner:
            raise UserError(
                f"{self.description()} has no objects named {self.objects!r} (data.objects) with "
                f"{self.box!r} (data.box) and {self.label!r} (data.label)"
            )
        return tuple(inner[self.label].names)

    def annotated(self, split: str) -> SetBoxes:
        self.found.require("Image", self.feature, "image (data.feature)")
        self.classes()
        return SetBoxes(self, self.found.source(getattr(self, split), (self.feature, self.objects)))


class SetBoxes:
    """Images and objects of a prepared TFDS set, whose boxes are (top, left, bottom, right) in
    shares of the image."""

    def __init__(self, dataset: TfdsBoxes, source: Examples):
        self._dataset, self._source = dataset, source

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return f"example {index}"

    def view(self, index: int, random: np.random.Generator | None) -> Annotated:
        d, row = self._dataset, self._source[index]
        image = library().fromarray(row[d.feature])
        return d.fitted(image, self._objects(row[d.objects], image.size), random)

    def _objects(self, given: Mapping[str, Any], size: tuple[int, int]) -> Objects:
        width, height = size
        box_N4, label_N = (
            np.asarray(given[self._dataset.box]),
            np.asarray(given[self._dataset.label]),
        )
        left_out = np.zeros(len(label_N), bool)
        for name in ("is_crowd", "is_difficult"):
            left_out |= np.asarray(given.get(name, left_out), bool)
        return [
            (int(number), left * width, top * height, right * width, bottom * height)
            for number, (top, left, bottom, right) in zip(
                label_N[~left_out], box_N4[~left_out].tolist(), strict=True
            )
        ]
