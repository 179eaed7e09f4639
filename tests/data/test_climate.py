"""The climate of the earth's pixels: aligned with the picture, no longitude in two splits."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from moe_jax.config.checks import check
from moe_jax.data import climate
from moe_jax.data.climate import BLOCKS, GROUPS, NAMES, Climate
from tests.data.archives import card_of

H, W = 90, 300  # of the picture; the map of zones is twice as fine


@pytest.fixture
def zones():
    """A band of ocean in the north; below it each column of the map has a zone of its own."""
    zones = np.broadcast_to(np.arange(2 * W) // 2 % 31 + 1, (2 * H, 2 * W)).astype(np.uint8).copy()
    zones[:40] = 32
    return zones


@pytest.fixture
def data(tmp_path, monkeypatch, zones):
    """The picture's red is the column, its green the row, as far as they go."""
    y, x = np.mgrid[:H, :W]
    picture = np.stack([x % 256, y, x // 256], axis=-1).astype(np.uint8)
    contents = []
    for name, array in ((climate.PICTURE, picture), (climate.ZONES, zones)):
        image, wheel = io.BytesIO(), io.BytesIO()
        Image.fromarray(array).save(image, "png")  # losslessly, whatever its name
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(name, image.getvalue())
        contents.append(wheel.getvalue())
    card = card_of(climate.CARD, **{str(n): content for n, content in enumerate(contents)})
    for archive, content in zip(card.archives, contents, strict=True):
        (tmp_path / archive.file).write_bytes(content)
    monkeypatch.setattr(Climate, "card", card)
    return Climate(
        archive=str(tmp_path), data_dir=str(tmp_path / "data"), height=8, width=10,
        mean=0.0, deviation=1.0, flip=0.0,
    )  # fmt: skip


def columns_of(image):
    """Which columns and rows of the picture a row's image shows."""
    red, green, blue = np.round(255 * image[..., :3]).astype(int).transpose(2, 0, 1)
    return red + 256 * blue, green


def test_every_pixel_has_the_climate_of_its_place(data, zones):
    letters = list(GROUPS.values())
    for split in ("train", "validation"):
        rows = data.open(split)
        assert rows.classes == tuple(GROUPS)
        for i in range(len(rows)):
            row = rows[i]
            x, y = columns_of(row["image"])
            names = np.array(["", *NAMES])[zones[2 * y + 1, 2 * x + 1]]
            wanted = np.vectorize(lambda name: letters.index(name[0]))(names)
            np.testing.assert_array_equal(row["label_map"], wanted)


def test_no_longitude_is_in_two_splits(data):
    """Nor does a tile that moves in training leave its block."""
    seen = {}
    for split in ("train", "validation"):
        rows, random = data.open(split), np.random.default_rng(0)
        found = [rows[i] for i in range(len(rows))]
        if split == "train":
            found += [rows.augmented(i, random) for i in range(len(rows)) for _ in range(20)]
        seen[split] = set(np.unique([columns_of(row["image"])[0] for row in found]))
        blocks = {tuple(np.unique(columns_of(row["image"])[0] * BLOCKS // W)) for row in found}
        assert all(len(block) == 1 for block in blocks)
    assert seen["train"] and seen["validation"] and not seen["train"] & seen["validation"]
    assert len(seen["validation"]) == W // 5


def test_tiles_move_and_turn_over_with_their_classes(data):
    rows = replace(data, flip=0.5).open("train")
    found, turned = [], 0
    for seed in range(40):
        row = rows.augmented(3, np.random.default_rng(seed))
        x, y = columns_of(row["image"])
        turned += x[0, 0] > x[0, 1]
        found.append((x.min(), y.min()))
        again = rows.augmented(3, np.random.default_rng(seed))
        assert all(np.array_equal(row[name], again[name]) for name in row)
        ocean = row["label_map"] == 0
        np.testing.assert_array_equal(ocean, 2 * y + 1 < 40)
    assert len(set(found)) > 10 and 8 < turned < 32


def test_latitude_is_two_channels(data):
    given = replace(data, latitude=True)
    assert given.columns()["image"].shape == (8, 10, 5)
    row = given.open("train")[0]
    _, y = columns_of(row["image"])
    angle = np.radians(90 - 180 * (y + 0.5) / H)
    waves = 2 * row["image"][..., 3:] - 1
    np.testing.assert_allclose(waves, np.stack([np.sin(angle), np.cos(angle)], -1), atol=1e-6)


def test_tiles_of_little_land_are_left_out(data):
    few, all_ = (replace(data, least_land=share).open("train") for share in (0.9, 0.0))
    assert 0 < len(few) < len(data.open("train")) <= len(all_)
    assert all((few[i]["label_map"] != 0).mean() >= 0.9 for i in range(len(few)))
    problems = {p.path for p in check(replace(data, least_land=1.0, height=400, deviation=0))}
    assert problems == {"least_land", "height", "deviation"}
