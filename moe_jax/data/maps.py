"""What data sets of images with a class for every pixel share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least, at_most
from moe_jax.config.json_files import JsonObject
from moe_jax.data.order import scattered
from moe_jax.data.types import NO_LABEL, ArraySpec, require_split


class Maps(Protocol):
    """The images of a split with their maps of classes, as they are stored."""

    def __len__(self) -> int: ...

    def window(
        self, index: int, random: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 (H, W, C), or float32 of 0 to 1, and classes (H, W), NO_LABEL where nothing
        counts. random: of training, which may take another part of the image each time."""
        ...


@dataclass(frozen=True, kw_only=True)
class MapDataset:
    """A data set of images with a class for each pixel. A subclass says what it holds.

    height, width: of a row, in pixels. mean, deviation: of a pixel from 0 to 1, by which it is
    scaled: (pixel - mean) / deviation. flip: the chance of the mirror image in training.
    """

    kind_name: ClassVar[str]

    height: int = 64
    width: int = 64
    mean: float = 0.5
    deviation: float = 0.25
    flip: float = 0.5

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "height", "width")
        yield from at_least(self, 0, "flip")
        yield from at_most(self, 1, "flip")
        if self.deviation <= 0:
            yield "deviation", "must be above 0"

    # What a subclass says

    def maps(self, split: str) -> Maps:
        """The images of "train" or "validation". UserError where there are none."""
        raise NotImplementedError

    def classes(self) -> tuple[str, ...]:
        raise NotImplementedError

    def identity(self) -> JsonObject:
        """JSON that changes when the images do."""
        raise NotImplementedError

    def channels_of(self) -> int:
        """Of a row's image."""
        return 3

    def domains(self) -> tuple[str, ...]:
        return (self.kind_name,)

    def description(self) -> str:
        return self.kind_name

    # What all have

    def columns(self) -> dict[str, ArraySpec]:
        size = (self.height, self.width)
        return {
            "image": ArraySpec((*size, self.channels_of()), "float32"),
            "label_map": ArraySpec(size, padding=NO_LABEL),
        }

    def open(self, split: str) -> MapRows:
        require_split(split)
        rows = MapRows(self, self.maps(split), split)
        if not len(rows):
            raise UserError(f"{self.description()}: the {split} split is empty")
        return rows


class MapRows:
    """A split. `Rows` of types.py: image float32 (H, W, C), label_map int32 (H, W)."""

    tokenizer = None

    def __init__(self, dataset: MapDataset, maps: Maps, split: str):
        self._dataset, self._maps, self._scatter = dataset, maps, split != "train"
        self.classes = dataset.classes()
        self.domains = dataset.domains()
        d = dataset
        self.fingerprint: JsonObject = {
            "kind": dataset.kind_name,
            "split": split,
            "image": [d.height, d.width, d.channels_of(), d.mean, d.deviation],
            "content": {
                **dataset.identity(),
                "images": len(maps),
                "classes": list(self.classes),
            },
        }

    def __len__(self) -> int:
        return len(self._maps)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._row(*self._maps.window(self._place(index), None))

    def augmented(self, index: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """The row as training sees it, by the draws of `random`."""
        pixels, classes = self._maps.window(self._place(index), random)
        if self._dataset.flip and random.random() < self._dataset.flip:
            pixels, classes = pixels[:, ::-1], classes[:, ::-1]
        return self._row(pixels, classes)

    def _place(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return scattered(index, len(self)) if self._scatter else index

    def _row(self, pixels: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
        d = self._dataset
        wanted = (d.height, d.width, d.channels_of())
        if pixels.shape != wanted or classes.shape != wanted[:2]:
            raise UserError(f"{d.description()}: an image is {pixels.shape}, not {wanted}")
        scale = np.float32(255 if pixels.dtype == np.uint8 else 1)
        image = (pixels.astype(np.float32) / scale - np.float32(d.mean)) / np.float32(d.deviation)
        return {
            "image": np.ascontiguousarray(image),
            "label_map": np.ascontiguousarray(classes.astype(np.int32)),
        }


def content_of(*arrays: np.ndarray) -> str:
    """sha256 of arrays."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()
