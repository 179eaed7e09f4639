"""Scenes: boxes are those of the masks, splits share nothing, a scene is always the same."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.data import climate, digits, scenes
from moe_jax.data.fashion_mnist import INSIDE
from moe_jax.data.scenes import DigitScenes, Scenes, resized, shared
from tests.data.archives import card_of, deb_of, idx_of

SPLITS = ("train", "validation")


@pytest.fixture
def data():
    return DigitScenes(rows=60, validation_rows=30, mean=0.0, deviation=1.0)


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """Clothes of one grey each, by split, on a picture whose red and blue are the column."""
    files = {}
    for stem, grey, count in (("train", 200, 20), ("t10k", 100, 10)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 4:24, 8:20] = grey
        files[INSIDE.format(stem, "images-idx3")] = idx_of(images)
        files[INSIDE.format(stem, "labels-idx1")] = idx_of((np.arange(count) % 10).astype(np.uint8))
    y, x = np.mgrid[:180, :600]
    picture, wheel = np.stack([x % 256, y, x // 256], axis=-1).astype(np.uint8), io.BytesIO()
    image = io.BytesIO()
    Image.fromarray(picture).save(image, "png")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(climate.PICTURE, image.getvalue())
    contents = deb_of(files), wheel.getvalue()
    card = card_of(scenes.CARD, clothes=contents[0], earth=contents[1])
    for archive, content in zip(card.archives, contents, strict=True):
        (tmp_path / archive.file).write_bytes(content)
    monkeypatch.setattr(Scenes, "card", card)
    return Scenes(
        archive=str(tmp_path), data_dir=str(tmp_path / "data"), height=32, width=32,
        rows=40, validation_rows=20, mean=0.0, deviation=1.0,
    )  # fmt: skip


def test_a_box_is_the_extent_of_its_mask(data):
    rows, counts = data.open("train"), []
    for index in range(len(rows)):
        row, scene = rows[index], rows.images.scene(index)
        n = int(row["objects"])
        counts.append(n)
        assert len(scene.mask_NHW) == n == (row["classes"] >= 0).sum()
        assert (row["classes"][n:] == -1).all() and not row["boxes"][n:].any()
        for mask, box in zip(scene.mask_NHW, row["boxes"], strict=False):
            y, x = np.nonzero(mask)
            left, right = (box[0] - box[2] / 2) * data.width, (box[0] + box[2] / 2) * data.width
            top, bottom = (box[1] - box[3] / 2) * data.height, (box[1] + box[3] / 2) * data.height
            found = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            np.testing.assert_allclose([left, top, right, bottom], found, atol=1e-4)
        corners = scene.image.corner_N4
        pairs = [shared(a, b) for i, a in enumerate(corners) for b in corners[:i]]
        assert all(share <= 0.25 for share in pairs)
    assert min(counts) == 0 and 4 < max(counts) <= data.max_objects


def test_objects_are_where_the_masks_say(data):
    """Beside them the pixels are the photograph's; on them they are not."""
    stock, rows = data.stock("train"), data.open("train")
    seen = 0
    for index in range(20):
        scene = rows.images.scene(index)
        free = ~scene.mask_NHW.any(axis=0)
        pixels = np.round(255 * scene.image.pixels_HWC).astype(int)
        corner = tuple(pixels[0, 0]) if free[0, 0] else None
        for picture in stock.backgrounds[0]:
            places = np.argwhere((picture[:-47, :-47] == corner).all(-1)) if corner else []
            for y, x in places:
                piece = picture[y : y + 48, x : x + 48]
                seen += bool((piece[free] == pixels[free]).all())
    assert seen >= 10


def test_a_scene_is_always_the_same_and_turns_over(data):
    rows, again = data.open("train"), data.open("train")
    assert all(np.array_equal(rows[5][name], again[5][name]) for name in rows[5])
    assert not np.array_equal(rows[5]["image"], rows[6]["image"])
    other = replace(data, seed=1).open("train")
    assert not np.array_equal(rows[5]["image"], other[5]["image"])
    assert rows.fingerprint != other.fingerprint
    mirrored = replace(data, flip=1.0).open("train").augmented(5, np.random.default_rng(0))
    np.testing.assert_array_equal(mirrored["image"], rows[5]["image"][:, ::-1])
    n = int(rows[5]["objects"])
    assert n > 0 and not mirrored["boxes"][n:].any()
    np.testing.assert_allclose(mirrored["boxes"][:n, 0], 1 - rows[5]["boxes"][:n, 0])
    np.testing.assert_array_equal(mirrored["boxes"][:, 1:], rows[5]["boxes"][:, 1:])
    assert data.flip == 0  # a mirrored digit is none


def test_splits_share_no_digit_and_no_piece_of_a_photograph(data):
    every = digits.Digits().pictures("train"), digits.Digits().pictures("validation")
    for split, pictures in zip(SPLITS, every, strict=True):
        stock = data.stock(split)
        assert len(stock.item_NHW) == len(pictures.labels)
        np.testing.assert_array_equal(stock.item_NHW[7], pictures[7][..., 0])
    parts = [[p.shape[1] for p in data.stock(split).backgrounds[0]] for split in SPLITS]
    assert [sum(widths) for widths in zip(*parts, strict=True)] == [640, 640]
    first, second = (data.stock(split).backgrounds[0][0] for split in SPLITS)
    whole = scenes.photographs()[0]
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)


def test_clothes_and_regions_of_the_earth_are_in_one_split(fetched):
    columns = {}
    for split, grey in zip(SPLITS, (200, 100), strict=True):
        stock = fetched.stock(split)
        assert set(np.unique(stock.item_NHW)) == {0, grey}
        columns[split] = {
            int(value)
            for block in stock.backgrounds[0]
            for value in np.unique(block.astype(int) @ [1, 0, 256])
        }
        rows = fetched.open(split)
        assert rows.domains == ("satellite", "photograph") and rows.classes[9] == "ankle boot"
        assert {int(rows[i]["domain"]) for i in range(len(rows))} == {0, 1}
        assert len(rows) == (fetched.rows if split == "train" else fetched.validation_rows)
    assert not columns["train"] & columns["validation"]
    assert len(columns["train"] | columns["validation"]) == 600


def test_what_does_not_fit_is_told(data, fetched):
    problems = {p.path for p in check(replace(data, smallest=0.9, rows=0, height=200, flip=2))}
    assert problems == {"smallest", "rows", "height", "flip"}
    few = replace(data, max_objects=2)
    rows = few.open("train")
    rows.images._dataset = data  # whose scenes have more
    with pytest.raises(UserError, match=r"has \d objects, .* room for data.max_objects = 2"):
        [rows[i] for i in range(len(rows))]
    (few_files,) = (replace(fetched, archive=str(fetched.archive) + "/none"),)
    with pytest.raises(UserError, match=r"data\.archive: .*none is no folder"):
        few_files.open("train")


def test_items_are_scaled_bilinearly():
    """As Pillow does upwards, where it does not smooth."""
    item = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    found = resized(item, 20)
    wanted = np.asarray(Image.fromarray(item).resize((20, 20), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
