"""Images with maps of classes: files as PASCAL VOC has them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.data.map_folder import VOC, MapFolder


@pytest.fixture
def folder(tmp_path):
    """Images of two halves, the left of class n % 3, the right of 20; a border of 255."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    for n in range(12):
        height, width = 20 + 4 * (n % 3), 24
        classes = np.full((height, width), 20, np.uint8)
        classes[:, : width // 2] = n % 3
        classes[0] = 255
        mask = Image.fromarray(classes, "P" if n % 2 else "L")
        if n % 2:
            mask.putpalette(bytes(range(256)) * 3)
        mask.save(tmp_path / f"SegmentationClass/{n}.png")
        pixels = np.repeat(classes[..., None] * np.uint8(12), 3, axis=-1)
        Image.fromarray(pixels).save(tmp_path / f"JPEGImages/{n}.png")
    (tmp_path / "JPEGImages/unmapped.png").write_bytes(b"")
    return tmp_path


@pytest.fixture
def data(folder):
    return MapFolder(
        path=str(folder), height=8, width=8, validation_fraction=0.4, mean=0, deviation=1, flip=0.0
    )


def test_maps_are_those_of_the_files(data):
    assert data.classes() == VOC and VOC[20] == "tvmonitor"
    counts = 0
    for split in ("train", "validation"):
        rows = data.open(split)
        counts += len(rows)
        for i in range(len(rows)):
            row = rows[i]
            assert row["label_map"].shape == (8, 8) and row["image"].shape == (8, 8, 3)
            left, right = row["label_map"][2:, :3], row["label_map"][2:, -3:]
            assert len(np.unique(left)) == 1 and 0 <= left[0, 0] < 3 and (right == 20).all()
            assert row["image"][4, 1, 0] == pytest.approx(left[0, 0] * 12 / 255, abs=0.02)
    assert counts == 12


def test_what_is_no_class_counts_nowhere(data):
    whole = replace(data, height=20, width=24).open("train")
    labels = np.stack([whole[i]["label_map"] for i in range(len(whole))])
    assert (labels[:, 0] == -1).any() and labels.max() == 20 and (labels != 255).all()
    few = replace(data, names=("a", "b"), first=1).open("train")
    assert {int(x) for i in range(len(few)) for x in np.unique(few[i]["label_map"])} <= {-1, 0, 1}


def test_parts_in_training_are_drawn_and_stay_aligned(data):
    rows = replace(data, flip=0.5).open("train")
    seen = set()
    for seed in range(30):
        row = rows.augmented(1, np.random.default_rng(seed))
        counted = row["label_map"] >= 0
        bright = row["image"][..., 0] > 0.5
        assert (bright == (row["label_map"] == 20))[counted].mean() > 0.9
        seen.add(row["label_map"].tobytes())
    assert len(seen) > 8


def test_lists_name_the_splits(data, folder):
    (folder / "ImageSets/Segmentation/train.txt").write_text("1\n2\n3\n")
    (folder / "ImageSets/Segmentation/val.txt").write_text("4\n5\n")
    assert [len(data.open(split)) for split in ("train", "validation")] == [3, 2]
    (folder / "ImageSets/Segmentation/val.txt").write_text("4\ngone\n")
    with pytest.raises(UserError, match="no image and map of 'gone'"):
        data.open("validation")


def test_faults_are_told(data, folder):
    assert {p.path for p in check(MapFolder())} == {"path"}
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        replace(data, maps_folder="nowhere").open("train")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "SegmentationClass/1.png")
    rows = [data.open(split) for split in ("train", "validation")]
    with pytest.raises(UserError, match=r"1\.png: the image is \(24, 24\), its map \(3, 3\)"):
        [part[i] for part in rows for i in range(len(part))]
    (folder / "JPEGImages/1.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"1\.png: cannot be read as an image"):
        [part[i] for part in rows for i in range(len(part))]
