"""RandAugment: some operations on images, drawn for each image, at one strength."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from moe_jax.config.errors import UserError

STRONGEST = 30  # of `magnitude`; what each operation does there is in OPERATIONS

PillowImage = Any  # Pillow comes with an extra
Colour = int | tuple[int, int, int]

# Of an image, the strength in [-1, 1] and the colour of what comes in from beyond the edge. Those
# that have no direction get it from [0, 1].
Operation = Callable[[PillowImage, float, Colour], PillowImage]


def rand_augment(
    image_HWC: np.ndarray,
    count: int,
    magnitude: float,
    fill: int,
    random: np.random.Generator,
) -> np.ndarray:
    """The image behind `count` operations, drawn with replacement from the 14 of `OPERATIONS`.

    Cubuk et al. (1909.13719): all have the same chance and the same strength magnitude / 30;
    whether one turns left or right, lighter or darker, is drawn. The operations are Pillow's, their
    ranges those of torchvision's RandAugment.

    image_HWC: uint8, of one channel or three. fill: what comes in from beyond the edge, 0 to 255.
    UserError where Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        message = 'data.augmentation.operations needs Pillow: pip install "moe_jax[vision]"'
        raise UserError(message) from error
    grey = image_HWC.shape[-1] == 1
    image = Image.fromarray(image_HWC[:, :, 0] if grey else image_HWC)
    colour = fill if grey else (fill,) * 3
    for name in random.choice(list(OPERATIONS), count):
        operation, has_direction = OPERATIONS[name]
        strength = magnitude / STRONGEST
        if has_direction and random.random() < 0.5:
            strength = -strength
        image = operation(image, strength, colour)
    found = np.asarray(image)
    return found[:, :, None] if grey else found


def _affine(
    image: PillowImage, rows: tuple[float, float, float, float, float, float], colour: Colour
) -> PillowImage:
    """Each pixel (x, y) becomes the one nearest to (a x + b y + c, d x + e y + f)."""
    from PIL import Image

    transform, nearest = Image.Transform.AFFINE, Image.Resampling.NEAREST
    return image.transform(image.size, transform, rows, nearest, fillcolor=colour)


def _shear_x(image: PillowImage, strength: float, colour: Colour) -> PillowImage:
    return _affine(image, (1, 0.3 * strength, 0, 0, 1, 0), colour)


def _shear_y(image: PillowImage, strength: float, colour: Colour) -> PillowImage:
    return _affine(image, (1, 0, 0, 0.3 * strength, 1, 0), colour)


def _translate_x(image: PillowImage, strength: float, colour: Colour) -> PillowImage:
    return _affine(image, (1, 0, int(150 / 331 * strength * image.width), 0, 1, 0), colour)


def _translate_y(image: PillowImage, strength: float, colour: Colour) -> PillowImage:
    return _affine(image, (1, 0, 0, 0, 1, int(150 / 331 * strength * image.height)), colour)


def _rotate(image: PillowImage, strength: float, colour: Colour) -> PillowImage:
    return image.rotate(30 * strength, fillcolor=colour)


def _enhance(name: str) -> Operation:
    def enhance(image: PillowImage, strength: float, colour: Colour) -> PillowImage:
        from PIL import ImageEnhance

        return getattr(ImageEnhance, name)(image).enhance(1 + 0.9 * strength)

    return enhance


def _posterize(image: PillowImage, strength: float, colour: Colour) -> PillowImage:
    from PIL import ImageOps

    return ImageOps.posterize(image, 8 - round(4 * strength))


def _solarize(image: PillowImage, strength: float, colour: Colour) -> PillowImage:
    from PIL import ImageOps

    return ImageOps.solarize(image, math.ceil(255 * (1 - strength)))


def _stretch(name: str) -> Operation:
    def stretch(image: PillowImage, strength: float, colour: Colour) -> PillowImage:
        from PIL import ImageOps

        return getattr(ImageOps, name)(image)

    return stretch


# name -> (operation, whether it has a direction). At full strength:
OPERATIONS: dict[str, tuple[Operation, bool]] = {
    "identity": (lambda image, strength, colour: image, False),
    "shear_x": (_shear_x, True),  # by 0.3
    "shear_y": (_shear_y, True),
    "translate_x": (_translate_x, True),  # by 150 / 331 of the width
    "translate_y": (_translate_y, True),
    "rotate": (_rotate, True),  # by 30 degrees
    "brightness": (_enhance("Brightness"), True),  # by 0.9, as the next three
    "color": (_enhance("Color"), True),
    "contrast": (_enhance("Contrast"), True),
    "sharpness": (_enhance("Sharpness"), True),
    "posterize": (_posterize, False),  # to 4 bits
    "solarize": (_solarize, False),  # from 0 on
    "autocontrast": (_stretch("autocontrast"), False),  # the same at any strength
    "equalize": (_stretch("equalize"), False),
}
