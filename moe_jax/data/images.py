"""What data sets of labelled images share: a size, a scale, and how training varies them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least, at_most
from moe_jax.config.json_files import JsonObject
from moe_jax.data.order import place_of
from moe_jax.data.pictures import PictureDataset
from moe_jax.data.rand_augment import STRONGEST, rand_augment
from moe_jax.data.types import NO_LABEL, ArraySpec, require_split

CHANNELS = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How an image of the training split is varied, anew each time that it comes up: a function of
    the data's seed and of the position in the run, so that a resumed run sees the same.

    flip: chance of the mirror image. crop: pixels by which it may move each way, what is beyond
    its edge is 0. mixup: a of the share l ~ Beta(a, a) of the image itself, 1 - l being of another
    one, in pixels and in the loss (Zhang et al., 1710.09412); 0: none. operations: of RandAugment
    (data/rand_augment.py), so many for each image, at strength `magnitude` of 30; 0: none.
    """

    flip: float = 0.0
    crop: int = 0
    mixup: float = 0.0
    operations: int = 0
    magnitude: float = 9.0

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "flip", "crop", "mixup", "operations", "magnitude")
        yield from at_most(self, 1, "flip")
        yield from at_most(self, STRONGEST, "magnitude")

    def varied(
        self, pixels_HWC: np.ndarray, mean: float, random: np.random.Generator
    ) -> np.ndarray:
        """Behind the drawn operations, which work on bytes; mean: the pixel, from 0 to 1, that
        comes in from beyond the edge."""
        if not self.operations:
            return pixels_HWC
        if pixels_HWC.dtype != np.uint8:
            pixels_HWC = np.round(255 * pixels_HWC).astype(np.uint8)
        fill = round(255 * mean)
        return rand_augment(pixels_HWC, self.operations, self.magnitude, fill, random)

    def moved(self, image_HWC: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Mirrored and moved, by chance."""
        if self.flip and random.random() < self.flip:
            image_HWC = image_HWC[:, ::-1]
        if self.crop:
            H, W, _ = image_HWC.shape
            wide = np.pad(image_HWC, ((self.crop,) * 2, (self.crop,) * 2, (0, 0)))
            y, x = random.integers(0, 2 * self.crop + 1, 2)
            image_HWC = wide[y : y + H, x : x + W]
        return image_HWC


class Pictures(Protocol):
    """The images of a split as they are stored. labels: a number for each."""

    @property
    def labels(self) -> Sequence[int] | np.ndarray: ...

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 (H, W, C), or what is scaled as it is."""
        ...


class ArrayPictures:
    """Images that are there as one array."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images, self.labels = images, labels

    def __getitem__(self, index: int) -> np.ndarray:
        return self._images[index]


@dataclass(frozen=True, kw_only=True)
class ImageDataset(PictureDataset):
    """A data set of images with a class each. A subclass says what it holds.

    Images of other sizes are brought to height and width. channels: 1 is grey, 3 is colour.
    """

    height: int = 32
    width: int = 32
    channels: int = 3
    augmentation: Augmentation = Augmentation()

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if self.channels not in CHANNELS:
            yield "channels", "must be 1 (grey) or 3 (colour)"
        if 2 * self.augmentation.crop >= min(self.height, self.width):
            yield "augmentation.crop", "must be below half of the image"

    def pictures(self, split: str) -> Pictures:
        """The images of "train" or "validation". UserError where there are none."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    def columns(self) -> dict[str, ArraySpec]:
        mixed = {"other_label": ArraySpec(padding=NO_LABEL), "share": ArraySpec(dtype="float32")}
        return {
            "image": ArraySpec(self.shape, "float32"),
            "label": ArraySpec(padding=NO_LABEL),
            **(mixed if self.augmentation.mixup else {}),
        }

    def open(self, split: str) -> ImageRows:
        require_split(split)
        rows = ImageRows(self, self.pictures(split), split)
        if not len(rows):
            raise UserError(f"{self.description()}: the {split} split is empty")
        return rows


class ImageRows:
    """A split of images. `Rows` of types.py: image float32 (H, W, C), label int32 (); with mixup
    other_label int32 () and share float32 () too, the label's own share in the loss."""

    tokenizer = None

    def __init__(self, dataset: ImageDataset, pictures: Pictures, split: str):
        self._dataset, self._pictures, self._scatter = dataset, pictures, split != "train"
        self.classes = dataset.classes()
        self.domains = (dataset.kind_name,)
        sizes = [*dataset.shape, dataset.mean, dataset.deviation]
        labels = np.asarray(pictures.labels, "<i4")
        self.fingerprint: JsonObject = {
            "kind": dataset.kind_name,
            "split": split,
            "image": sizes,
            "content": {
                **dataset.identity(),
                "images": len(labels),
                "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
                "classes": list(self.classes),
            },
        }

    def __len__(self) -> int:
        return len(self._pictures.labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        place = self._place(index)
        return self._row(index, self._scaled(self._pixels(place), place))

    def augmented(self, index: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """The row as training sees it, by the draws of `random`."""
        mixup, row = self._dataset.augmentation.mixup, self._row(index, self._varied(index, random))
        if mixup:
            share = np.float32(random.beta(mixup, mixup))
            other = int(random.integers(len(self)))
            row["image"] = share * row["image"] + (1 - share) * self._varied(other, random)
            row |= {"other_label": self._label(other), "share": np.asarray(share)}
        return row

    def _row(self, index: int, image_HWC: np.ndarray) -> dict[str, np.ndarray]:
        label = self._label(index)
        row = {"image": image_HWC, "label": label}
        if self._dataset.augmentation.mixup:
            row |= {"other_label": label, "share": np.asarray(1.0, np.float32)}
        return row

    def _label(self, index: int) -> np.ndarray:
        return np.asarray(np.int32(self._pictures.labels[self._place(index)]))

    def _varied(self, index: int, random: np.random.Generator) -> np.ndarray:
        """The image of a row, varied by chance."""
        d, place = self._dataset, self._place(index)
        pixels = d.augmentation.varied(self._pixels(place), d.mean, random)
        return np.ascontiguousarray(d.augmentation.moved(self._scaled(pixels, place), random))

    def _place(self, index: int) -> int:
        return place_of(index, len(self), self._scatter)

    def _pixels(self, place: int) -> np.ndarray:
        return np.asarray(self._pictures[place])

    def _scaled(self, pixels: np.ndarray, place: int) -> np.ndarray:
        return self._dataset.scaled(pixels, f"image {place}")
