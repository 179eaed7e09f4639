"""RandAugment against what its operations are said to do, in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from moe_jax.config.checks import check
from moe_jax.data.digits import Digits
from moe_jax.data.images import Augmentation
from moe_jax.data.rand_augment import OPERATIONS, STRONGEST, rand_augment

H, W = 20, 30
FILL = 77


def picture(channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (H, W, channels)).astype(np.uint8)


class Drawing:
    """Draws this operation, and that direction."""

    def __init__(self, name, backward=False):
        self._name, self._number = name, 0.0 if backward else 1.0

    def choice(self, names, count):
        assert self._name in names
        return [self._name] * count

    def random(self):
        return self._number


def after(name, image, magnitude=STRONGEST, backward=False):
    return rand_augment(image, 1, magnitude, FILL, Drawing(name, backward))


def moved_rows(image, shift):
    """Every row y by shift(y) pixels to the left, whole ones."""
    wanted = np.full_like(image, FILL)
    for y in range(H):
        for x in range(W):
            source = int(np.floor(x + 0.5 + shift(y)))
            if 0 <= source < W:
                wanted[y, x] = image[y, source]
    return wanted


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_the_form(name, channels):
    image = picture(channels)
    for backward in (False, True):
        found = after(name, image, backward=backward)
        assert found.shape == image.shape and found.dtype == np.uint8


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize"}))
def test_no_strength_is_no_change(name):
    if name == "solarize":  # inverts from the largest value on
        image = np.minimum(picture(3), 254)
    else:
        image = picture(3)
    np.testing.assert_array_equal(after(name, image, magnitude=0), image)


def test_the_edges_move_in():
    image, across, down = picture(3), int(150 / 331 * W), int(150 / 331 * H)
    found = after("translate_x", image)
    np.testing.assert_array_equal(found[:, : W - across], image[:, across:])
    assert np.all(found[:, W - across :] == FILL)
    found = after("translate_y", image, backward=True)
    np.testing.assert_array_equal(found[down:], image[: H - down])
    assert np.all(found[:down] == FILL)
    half = after("translate_x", image, magnitude=STRONGEST / 2)
    np.testing.assert_array_equal(half[:, : W - across // 2], image[:, across // 2 :])


@pytest.mark.parametrize("backward", [False, True])
def test_shears(backward):
    image, slope = picture(1), -0.3 if backward else 0.3
    np.testing.assert_array_equal(
        after("shear_x", image, backward=backward),
        moved_rows(image, lambda y: slope * (y + 0.5)),
    )


def test_turned_by_thirty_degrees():
    """A bright pixel goes where the rotation says, counted from the middle."""
    image = np.zeros((41, 41, 1), np.uint8)
    image[20 - 2 : 20 + 3, 35 - 2 : 35 + 3] = 255  # 15 to the right
    for backward, sign in ((False, 1), (True, -1)):
        found = after("rotate", image, backward=backward)[:, :, 0].astype(float)
        found[found == FILL] = 0
        y, x = (np.sum(place * found) / found.sum() for place in np.mgrid[:41, :41])
        angle = np.deg2rad(30) * sign  # counter-clockwise; rows go down
        assert (y, x) == pytest.approx((20 - 15 * np.sin(angle), 20 + 15 * np.cos(angle)), abs=0.3)


def test_colours():
    image = picture(3)
    for backward, factor in ((False, 1.9), (True, 0.1)):
        wanted = np.clip(image * factor, 0, 255)
        np.testing.assert_allclose(after("brightness", image, backward=backward), wanted, atol=1)
        grey = np.asarray(Image.fromarray(image).convert("L")).astype(float)
        mean = int(grey.mean() + 0.5)
        wanted = np.clip(mean + factor * (image - float(mean)), 0, 255)
        np.testing.assert_allclose(after("contrast", image, backward=backward), wanted, atol=1)
        wanted = np.clip(grey[:, :, None] + factor * (image - grey[:, :, None]), 0, 255)
        np.testing.assert_allclose(after("color", image, backward=backward), wanted, atol=1)
    np.testing.assert_array_equal(after("posterize", image), image & 0xF0)
    np.testing.assert_array_equal(after("solarize", image), 255 - image)
    half = after("solarize", image, magnitude=STRONGEST / 2)
    np.testing.assert_array_equal(half, np.where(image < 127.5, image, 255 - image))
    dull = (image // 4 + 50).astype(np.uint8)
    stretched = after("autocontrast", dull)
    assert stretched.min() == 0 and stretched.max() >= 254


def test_operations_have_equal_chances_and_both_directions():
    counts: dict[bytes, int] = {}
    image, random = picture(1), np.random.default_rng(0)
    n = 4000
    for _ in range(n):
        found = rand_augment(image, 1, STRONGEST, FILL, random).tobytes()
        counts[found] = counts.get(found, 0) + 1
    # Nothing is done to it, it has no colour to lose, and all its greys are taken already.
    assert counts.pop(image.tobytes()) / n == pytest.approx(3 / 14, abs=0.02)
    right = after("rotate", image).tobytes(), after("rotate", image, backward=True).tobytes()
    for found in right:
        assert counts[found] / n == pytest.approx(1 / 28, abs=0.012)


def test_in_training_and_nowhere_else():
    data = Digits(augmentation=Augmentation(operations=2, magnitude=9.0))
    rows, plain = data.open("train"), replace(data, augmentation=Augmentation()).open("train")
    np.testing.assert_array_equal(rows[5]["image"], plain[5]["image"])
    seen = [rows.augmented(5, np.random.default_rng([1, p]))["image"] for p in range(20)]
    again = [rows.augmented(5, np.random.default_rng([1, p]))["image"] for p in range(20)]
    for one, two in zip(seen, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert len({one.tobytes() for one in seen}) > 5
    assert [one.dtype for one in seen] == [np.float32] * 20
    own = -data.mean / data.deviation  # of a black pixel
    assert min(one.min() for one in seen) >= own - 1e-6


@pytest.mark.parametrize(
    ("given", "path"),
    [({"operations": -1}, "operations"), ({"magnitude": 31.0}, "magnitude")],
)
def test_wrong_strengths(given, path):
    found = [p.path for p in check(Digits(augmentation=Augmentation(**given)))]
    assert found == [f"augmentation.{path}"]
