"""What data sets of images with objects in boxes share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least
from moe_jax.config.json_files import JsonObject
from moe_jax.data.order import place_of
from moe_jax.data.pictures import COLOUR, MirroredPictures
from moe_jax.data.types import NO_LABEL, ArraySpec, require_split


@dataclass(frozen=True)
class Annotated:
    """An image and its objects.

    pixels: uint8 (H, W, C), or float32 of 0 to 1. corner_N4: left, top, right and bottom of each
    object in pixels, from the image's left and upper edge. class_N: int. domain: index in the data
    set's `domains`.
    """

    pixels_HWC: np.ndarray
    corner_N4: np.ndarray
    class_N: np.ndarray
    domain: int = 0


class Boxes(Protocol):
    """The images of a split with their objects, as they are stored."""

    def __len__(self) -> int: ...

    def view(self, index: int, random: np.random.Generator | None) -> Annotated:
        """random: of training, which may take another part of the image each time."""
        ...

    def name(self, index: int) -> str:
        """Of an image, in messages."""
        ...


@dataclass(frozen=True, kw_only=True)
class BoxDataset(MirroredPictures):
    """A data set of images with objects in boxes. A subclass says what it holds.

    max_objects: N, for how many objects a row has room; an image with more of them is an error.
    """

    max_objects: int = 8

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "max_objects")

    # What a subclass says

    def annotated(self, split: str) -> Boxes:
        """The images of "train" or "validation". UserError where there are none."""
        raise NotImplementedError

    def domains(self) -> tuple[str, ...]:
        return (self.kind_name,)

    # What all have

    def columns(self) -> dict[str, ArraySpec]:
        return box_columns(self.height, self.width, self.max_objects)

    def open(self, split: str) -> BoxRows:
        require_split(split)
        rows = BoxRows(self, self.annotated(split), split)
        if not len(rows):
            raise UserError(f"{self.description()}: the {split} split is empty")
        return rows


def box_columns(height: int, width: int, objects: int) -> dict[str, ArraySpec]:
    """Of an image with room for so many objects."""
    return {
        "image": ArraySpec((height, width, COLOUR), "float32"),
        "boxes": ArraySpec((objects, 4), "float32"),
        "classes": ArraySpec((objects,), padding=NO_LABEL),
        "objects": ArraySpec(padding=NO_LABEL),
        "domain": ArraySpec(),
    }


class BoxRows:
    """A split. `Rows` of types.py: image float32 (H, W, 3); boxes float32 (N, 4), middle (x, y) and
    size (w, h) as shares of width and height, x from the left and y from above; classes int32 (N,),
    NO_LABEL where there is no object; objects int32 (), how many there are, 0 too; domain int32 ().
    """

    tokenizer = None

    def __init__(self, dataset: BoxDataset, images: Boxes, split: str):
        self._dataset, self.images, self._scatter = dataset, images, split != "train"
        self.classes, self.domains = dataset.classes(), dataset.domains()
        d = dataset
        self.fingerprint: JsonObject = {
            "kind": dataset.kind_name,
            "split": split,
            "image": [d.height, d.width, d.mean, d.deviation, d.max_objects],
            "content": {
                **dataset.identity(),
                "images": len(images),
                "classes": list(self.classes),
            },
        }

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        place = self.place_of(index)
        return self._row(place, self.images.view(place, None))

    def augmented(self, index: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """The row as training sees it, by the draws of `random`."""
        place = self.place_of(index)
        row = self._row(place, self.images.view(place, random))
        if self._dataset.flips(random):
            row["image"] = np.ascontiguousarray(row["image"][:, ::-1])
            there = row["classes"] != NO_LABEL
            row["boxes"][there, 0] = 1 - row["boxes"][there, 0]
        return row

    def place_of(self, index: int) -> int:
        """Which image stands at row `index`."""
        return place_of(index, len(self), self._scatter)

    def _row(self, place: int, one: Annotated) -> dict[str, np.ndarray]:
        d, n = self._dataset, len(one.class_N)
        image = d.scaled(one.pixels_HWC, self.images.name(place))
        if n > d.max_objects:
            raise UserError(too_many(d, self.images.name(place), n))
        filled = {name: spec.filled(1)[0] for name, spec in d.columns().items() if spec.shape}
        filled["boxes"][:n] = middle_and_size(one.corner_N4, d.height, d.width)
        filled["classes"][:n] = one.class_N
        numbers = {"objects": np.asarray(np.int32(n)), "domain": np.asarray(np.int32(one.domain))}
        return {**filled, "image": image, **numbers}


def too_many(dataset: BoxDataset, name: str, count: int) -> str:
    return (
        f"{dataset.description()}: {name} has {count} objects, and a row has room for "
        f"data.max_objects = {dataset.max_objects}"
    )


def middle_and_size(corner_N4: np.ndarray, height: float, width: float) -> np.ndarray:
    """(left, top, right, bottom) in pixels -> (x, y, w, h), as shares of the image's sides."""
    corner = np.asarray(corner_N4, np.float64).reshape(-1, 4) / [width, height, width, height]
    low, high = corner[:, :2], corner[:, 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32)


def within(corner_N4: np.ndarray, part: tuple[float, float, float, float]) -> np.ndarray:
    """Boxes as a part of the image (left, top, right, bottom) has them: cut off at its edges, and
    counted from its own corner."""
    left, top, right, bottom = part
    moved = np.asarray(corner_N4, np.float64).reshape(-1, 4) - [left, top, left, top]
    return np.clip(moved, 0, [right - left, bottom - top, right - left, bottom - top])
