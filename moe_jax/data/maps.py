"""What data sets of images with a class for every pixel share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import JsonObject
from moe_jax.data.order import place_of
from moe_jax.data.pictures import MirroredPictures
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
class MapDataset(MirroredPictures):
    """A data set of images with a class for each pixel. A subclass says what it holds."""

    # What a subclass says

    def maps(self, split: str) -> Maps:
        """The images of "train" or "validation". UserError where there are none."""
        raise NotImplementedError

    def domains(self) -> tuple[str, ...]:
        return (self.kind_name,)

    # What all have

    def columns(self) -> dict[str, ArraySpec]:
        return {
            "image": ArraySpec(self.shape, "float32"),
            "label_map": ArraySpec(self.shape[:2], padding=NO_LABEL),
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
            "image": [*d.shape, d.mean, d.deviation],
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
        if self._dataset.flips(random):
            pixels, classes = pixels[:, ::-1], classes[:, ::-1]
        return self._row(pixels, classes)

    def _place(self, index: int) -> int:
        return place_of(index, len(self), self._scatter)

    def _row(self, pixels: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
        d = self._dataset
        if classes.shape != d.shape[:2]:
            raise UserError(f"{d.description()}: a map is {classes.shape}, not {d.shape[:2]}")
        return {
            "image": d.scaled(pixels, "an image"),
            "label_map": np.ascontiguousarray(classes.astype(np.int32)),
        }


def content_of(*arrays: np.ndarray) -> str:
    """sha256 of arrays."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()
