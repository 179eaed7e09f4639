"""Images with objects in files, as COCO and as PASCAL VOC have them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.data.box_folder import CocoFolder, VocFolder

PLAIN = dict(height=16, width=16, mean=0.0, deviation=1.0, flip=0.0)
# A bright square in a dark image of 40 x 20 pixels, its box: left, top, right, bottom.
SQUARES = [(4, 2, 14, 12), (20, 5, 30, 15), (30, 10, 40, 20)]


def picture(n):
    left, top, right, bottom = SQUARES[n % 3]
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[top:bottom, left:right] = 250
    return Image.fromarray(pixels)


@pytest.fixture
def coco(tmp_path):
    """Images of one square each, the last without any; a crowd and an empty box are beside them."""
    for split, count in (("train", 9), ("val", 4)):
        (tmp_path / f"{split}2017").mkdir()
        (tmp_path / "annotations").mkdir(exist_ok=True)
        images, annotations = [], []
        for n in range(count):
            picture(n).save(tmp_path / f"{split}2017/{n}.png")
            images.append({"id": 100 + n, "file_name": f"{n}.png", "width": 40, "height": 20})
            left, top, right, bottom = SQUARES[n % 3]
            box, one = [left, top, right - left, bottom - top], {"image_id": 100 + n}
            if n < count - 1:
                annotations.append({**one, "category_id": 7 if n % 2 else 3, "bbox": box})
            annotations.append({**one, "category_id": 3, "bbox": [0, 0, 30, 20], "iscrowd": 1})
            annotations.append({**one, "category_id": 3, "bbox": [5, 5, 0, 4]})
        table = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 7, "name": "owl"}, {"id": 3, "name": "cat"}],
        }
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(table))
    return CocoFolder(path=str(tmp_path), max_objects=3, **PLAIN)


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "voc"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for n in range(12):
        picture(n).save(root / f"JPEGImages/{n}.png")
        left, top, right, bottom = SQUARES[n % 3]
        one = (
            "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
            "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
        )
        objects = one.format("owl" if n % 2 else "cat", 0, left + 1, top + 1, right, bottom)
        objects += one.format("cat", 1, 1, 1, 40, 20)
        (root / f"Annotations/{n}.xml").write_text(f"<annotation>{objects}</annotation>")
    Image.new("RGB", (3, 3)).save(root / "JPEGImages/alone.png")
    return VocFolder(
        path=str(root), names=("cat", "owl"), validation_fraction=0.4, max_objects=2, **PLAIN
    )


def bright(row):
    """The box (x, y, w, h) of what is bright in a row's image."""
    y, x = np.nonzero(row["image"][..., 0] > 0.5)
    low, high = np.array([x.min(), y.min()]) / 16, np.array([x.max() + 1, y.max() + 1]) / 16
    return np.concatenate([(low + high) / 2, high - low])


def test_coco_has_its_boxes_and_classes(coco):
    assert coco.open("train").classes == ("cat", "owl")  # by their ids
    for split, count in (("train", 9), ("validation", 4)):
        rows = coco.open(split)
        assert len(rows) == count
        found = [rows[i] for i in range(len(rows))]
        assert sorted(int(row["objects"]) for row in found) == [0] + [1] * (count - 1)
        for row in found:
            if row["objects"]:
                np.testing.assert_allclose(row["boxes"][0], bright(row), atol=0.05)
        classes = [int(row["classes"][0]) for row in found if row["objects"]]
        assert set(classes) == {0, 1} and all((row["classes"][1:] == -1).all() for row in found)


def test_voc_has_its_boxes_and_classes(voc):
    counts = 0
    for split in ("train", "validation"):
        rows = voc.open(split)
        counts += len(rows)
        for i in range(len(rows)):
            row = rows[i]
            assert row["objects"] == 1
            np.testing.assert_allclose(row["boxes"][0], bright(row), atol=0.05)
    assert counts == 12 and rows.classes == ("cat", "owl")


def test_parts_in_training_have_their_part_of_the_boxes(voc):
    rows, gone, sizes = voc.open("train"), 0, set()
    for seed in range(60):
        row = rows.augmented(seed % len(rows), np.random.default_rng(seed))
        gone += int(row["objects"] == 0)
        if row["objects"]:
            np.testing.assert_allclose(row["boxes"][0], bright(row), atol=0.07)
            sizes.add(round(float(row["boxes"][0, 2]), 2))
    assert 0 < gone < 50 and len(sizes) > 5


def test_an_object_of_which_little_is_seen_is_none(voc):
    whole = replace(voc, least_seen=1.0).open("train")
    some = replace(voc, least_seen=0.05).open("train")
    counts = [
        sum(
            int(rows.augmented(seed % len(rows), np.random.default_rng(seed))["objects"])
            for seed in range(60)
        )
        for rows in (whole, voc.open("train"), some)
    ]
    assert counts[0] < counts[1] < counts[2]


def test_lists_name_the_splits(voc, tmp_path):
    lists = tmp_path / "voc/ImageSets/Main"
    (lists / "train.txt").write_text("1\n2\n3\n")
    (lists / "val.txt").write_text("4\n5\n")
    assert [len(voc.open(split)) for split in ("train", "validation")] == [3, 2]
    (lists / "val.txt").write_text("4\ngone\n")
    with pytest.raises(UserError, match=r"no image and \.xml of 'gone'"):
        voc.open("validation")


def test_faults_are_told(coco, voc, tmp_path):
    for kind in (CocoFolder, VocFolder):
        assert {p.path for p in check(kind())} == {"path"}
    assert {p.path for p in check(replace(voc, names=(), least_seen=0))} == {"names", "least_seen"}
    file = tmp_path / "annotations/instances_val2017.json"
    table = json.loads(file.read_text())
    table["annotations"] += [
        {"image_id": 100, "category_id": 3, "bbox": [n, 1, 4, 4]} for n in range(4)
    ]
    file.write_text(json.dumps(table))
    with pytest.raises(
        UserError, match=r"val2017/0\.png has 5 objects, .* room for data\.max_objects = 3"
    ):
        replace(coco).open("validation")
    table["annotations"] = [{"image_id": 100, "category_id": 4, "bbox": [1, 1, 4, 4]}]
    file.write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"instances_val2017\.json: not as COCO has it"):
        replace(coco).open("validation")
    file.write_text('{"images": 3, "categories": []}')
    with pytest.raises(UserError, match="no list 'images'"):
        replace(coco).open("validation")
    file.unlink()
    with pytest.raises(UserError, match=r"no such file \(data\.validation\)"):
        replace(coco).open("train")
    with pytest.raises(UserError, match=r"'owl' is none of data\.names"):
        replace(voc, names=("cat",)).open("train")
    (tmp_path / "voc/Annotations/1.xml").write_text("<annotation><object>")
    with pytest.raises(UserError, match=r"1\.xml: cannot be read as an annotation of VOC"):
        replace(voc).open("train")
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        replace(voc, annotations="nowhere").open("train")
