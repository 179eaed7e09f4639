"""What data sets of images share: a size, and the scale of their pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least, at_most
from moe_jax.config.json_files import JsonObject

COLOUR = 3  # channels


@dataclass(frozen=True, kw_only=True)
class PictureDataset:
    """A data set of images. A subclass says what it holds and what stands beside an image.

    height, width: of a row's image, in pixels. mean, deviation: of a pixel from 0 to 1, by which it
    is scaled: (pixel - mean) / deviation.
    """

    kind_name: ClassVar[str]

    height: int = 64
    width: int = 64
    mean: float = 0.5
    deviation: float = 0.25

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "height", "width")
        if self.deviation <= 0:
            yield "deviation", "must be above 0"

    def classes(self) -> tuple[str, ...]:
        raise NotImplementedError

    def identity(self) -> JsonObject:
        """JSON that changes when the images, or what stands beside them, do."""
        raise NotImplementedError

    def description(self) -> str:
        return self.kind_name

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a row's image: height, width, channels."""
        return self.height, self.width, COLOUR

    def scaled(self, pixels: np.ndarray, name: str) -> np.ndarray:
        """float32 of the row's shape, of uint8, or of numbers from 0 to 1. UserError, which names
        the image, where the shape is another one."""
        if pixels.shape != self.shape:
            raise UserError(f"{self.description()}: {name} is {pixels.shape}, not {self.shape}")
        scale = np.float32(255 if pixels.dtype == np.uint8 else 1)
        image = (pixels.astype(np.float32) / scale - np.float32(self.mean)) / np.float32(
            self.deviation
        )
        return np.ascontiguousarray(image)


@dataclass(frozen=True, kw_only=True)
class MirroredPictures(PictureDataset):
    """flip: the chance of the mirror image in training."""

    flip: float = 0.5

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 0, "flip")
        yield from at_most(self, 1, "flip")

    def flips(self, random: np.random.Generator) -> bool:
        """Whether a row of training is mirrored."""
        return bool(self.flip) and random.random() < self.flip
