"""Craters: boxes lie where the catalogue says, no longitude is in two splits."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from moe_jax.config.errors import UserError
from moe_jax.data import craters
from moe_jax.data.craters import WORLDS, Craters, boxes_of
from tests.data.archives import card_of

H, W = 90, 180  # of a map


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Each map is as bright as its column; a crater every 12 degrees along the equator."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        for world, radius in WORLDS.items():
            image = io.BytesIO()
            pixels = np.broadcast_to(np.arange(W, dtype=np.uint8)[None], (H, W))
            Image.fromarray(np.ascontiguousarray(pixels)).save(image, "tiff")
            archive.writestr(craters.MAP.format(world), image.getvalue())
            lines = ["Diameter (km),Latitude,Longitude"]
            lines += [f"{radius * 0.16},0,{longitude}" for longitude in range(6, 360, 12)]
            archive.writestr(craters.CATALOGUE.format(world), "\n".join(lines) + "\n")
    (tmp_path / "craters.whl").write_bytes(wheel.getvalue())
    monkeypatch.setattr(Craters, "card", card_of(craters.CARD, one=wheel.getvalue()))
    return Craters(
        archive=str(tmp_path / "craters.whl"), data_dir=str(tmp_path / "data"), height=20, width=12,
        mean=0.0, deviation=1.0, flip=0.0,
    )  # fmt: skip


def test_a_box_is_where_the_crater_is():
    """On a map of 360 x 180 pixels a degree is a pixel."""
    moon = 1737.4
    degree = 2 * np.pi * moon / 360
    rows = np.array([[10 * degree, 0, 0], [10 * degree, 60, 190], [4 * degree, -30, -90]])
    found = boxes_of(rows, moon, 180, 360)
    np.testing.assert_allclose(found[0], [175, 85, 185, 95])
    np.testing.assert_allclose(found[1], [0, 25, 20, 35], atol=1e-9)  # 190 is 170 west, twice wide
    np.testing.assert_allclose(
        found[2], [90 - 2 / np.cos(np.pi / 6), 118, 90 + 2 / np.cos(np.pi / 6), 122]
    )


def test_no_longitude_is_in_two_splits(data):
    seen = {}
    for split in ("train", "validation"):
        rows, random = data.open(split), np.random.default_rng(0)
        found = [rows[i] for i in range(len(rows))]
        found += [rows.augmented(i, random) for i in range(len(rows)) for _ in range(5)]
        assert rows.domains == tuple(WORLDS) and rows.classes == ("crater",)
        assert {int(row["domain"]) for row in found} == set(range(4))
        seen[split] = {int(v) for row in found for v in np.unique(np.round(row["image"] * 255))}
        still = [rows[i] for i in range(len(rows))]
        assert all(row["objects"] >= 1 for row in still)
        for row in still:
            box = row["boxes"][: int(row["objects"])]
            assert (box[:, 2:] > 0).all() and (box[:, :2] >= 0).all() and (box[:, :2] <= 1).all()
    # Brightness is the column, scaled by 2 and smoothed at the edge of a block.
    assert len(seen["train"] & seen["validation"]) <= 6 and len(seen["validation"]) > 20


def test_a_changed_wheel_is_refused(data, tmp_path):
    (tmp_path / "craters.whl").write_bytes(b"other")
    with pytest.raises(UserError, match=r"its sha256 is"):
        data.open("train")
