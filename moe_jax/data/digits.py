"""Handwritten digits that come with scikit-learn (extra `vision`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule
from moe_jax.config.json_files import JsonObject
from moe_jax.data.images import ArrayPictures, Augmentation, ImageDataset

SIDE, GREYS = 8, 16  # pixels; the darkest
EVERY = 5  # the share 1 / 5 validates


@dataclass(frozen=True, kw_only=True)
class Digits(ImageDataset):
    """1,797 real handwritten digits of 8 x 8 pixels in 17 greys, by 13 writers: the test part of
    UCI's Optical Recognition of Handwritten Digits, as scikit-learn ships it. Every fifth one
    validates; who wrote which is not recorded.
    """

    kind_name: ClassVar[str] = "digits"

    height: int = SIDE
    width: int = SIDE
    channels: int = 1
    mean: float = 0.3
    deviation: float = 0.38
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(crop=1))

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if (self.height, self.width, self.channels) != (SIDE, SIDE, 1):
            yield "height", "the digits are 8 x 8 pixels of one channel"

    def class_names(self) -> tuple[str, ...]:
        return tuple(str(digit) for digit in range(10))

    def classes(self) -> tuple[str, ...]:
        return self.class_names()

    def identity(self) -> JsonObject:
        images, labels = _load()
        content = images.astype("<f4").tobytes() + labels.astype("<i4").tobytes()
        return {"every": EVERY, "sha256": hashlib.sha256(content).hexdigest()}

    def pictures(self, split: str) -> ArrayPictures:
        images, labels = _load()
        chosen = (np.arange(len(labels)) % EVERY == 0) == (split != "train")
        return ArrayPictures(images[chosen], labels[chosen])


@cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8, 1) from 0 to 1, and the labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        message = 'data.kind = digits needs scikit-learn: pip install "moe_jax[vision]"'
        raise UserError(message) from error
    found = load_digits()
    return (found.images[..., None] / GREYS).astype(np.float32), found.target.astype(np.int32)
