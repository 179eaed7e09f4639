"""Data sets of boxes in one: classes by name, domains by data set, room for the objects of all."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.data.box_folder import CocoFolder
from moe_jax.data.box_mixture import BoxMixture, union
from moe_jax.data.pipeline import EvaluationBatches, Pipeline
from moe_jax.data.scenes import DigitScenes

SIZE = 32
DIGITS = dict(height=SIZE, width=SIZE, rows=12, validation_rows=8, max_objects=3)


@pytest.fixture
def folder(tmp_path):
    """Five images: a cat in each but the first, and a "3" in the last."""
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(5)]
    cats = [{"image_id": n, "category_id": 7, "bbox": [8, 8, 8, 16]} for n in range(1, 5)]
    three = {"image_id": 4, "category_id": 9, "bbox": [0, 0, 16, 16]}
    names = [{"id": 9, "name": "3"}, {"id": 7, "name": "cat"}]
    content = {"images": images, "annotations": [*cats, three], "categories": names}
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        for n in range(5):
            Image.new("RGB", (SIZE, SIZE), (40 * n,) * 3).save(tmp_path / split / f"{n}.png")
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def data(folder):
    digits = "digits = digit_scenes(rows=12, validation_rows=8, max_objects=3): 1"
    files = f"files = coco_folder(path={folder}, max_objects=5, mean=0, deviation=1): 3"
    return BoxMixture(height=SIZE, width=SIZE, parts=(digits, files))


def test_classes_are_the_union_by_name(data):
    rows = data.open("train")
    assert rows.classes == (*"0123456789", "cat") and rows.domains == ("digits", "files")
    assert union([("a", "b"), ("c", "b", "d")]) == ("a", "b", "c", "d")
    digits = DigitScenes(**DIGITS).open("train")
    for i in range(12):
        row, own = rows[i], digits[i]
        n = int(own["objects"])
        assert int(row["objects"]) == n and int(row["domain"]) == 0
        names = [rows.classes[c] for c in row["classes"][:n]]
        assert names == [digits.classes[c] for c in own["classes"][:n]]
        np.testing.assert_array_equal(row["boxes"][:3], own["boxes"])
        np.testing.assert_array_equal(row["image"], own["image"])
        assert row["boxes"].shape == (5, 4) and (row["classes"][n:] == -1).all()


def test_rows_of_files_and_images_without_objects(data):
    """The image of the first file is of no object, the "3" of the last is the digits' class."""
    rows = data.open("validation")
    found = [rows[i] for i in range(len(rows))]
    files = {round(float(r["image"].max()) * 255): r for r in found if r["domain"] == 1}
    assert len(found) == 13 and sorted(files) == [0, 40, 80, 120, 160]
    names = {
        grey: sorted(rows.classes[c] for c in row["classes"] if c >= 0)
        for grey, row in files.items()
    }
    assert names[0] == [] and int(files[0]["objects"]) == 0 and not files[0]["boxes"].any()
    assert names[160] == ["3", "cat"] and names[40] == ["cat"]
    np.testing.assert_allclose(files[40]["boxes"][0], [12 / 32, 16 / 32, 8 / 32, 16 / 32])


def test_columns_fit_the_rows_and_fill_up_batches(data):
    columns, rows = data.columns(), data.open("validation")
    assert columns["classes"].shape == (5,) and columns["image"].shape == (SIZE, SIZE, 3)
    for name, spec in columns.items():
        assert (rows[0][name].shape, str(rows[0][name].dtype)) == (spec.shape, spec.dtype)
    *_, last = EvaluationBatches(rows, 8, columns=columns)
    assert (last["objects"][5:] == -1).all() and (last["classes"][5:] == -1).all()


def test_training_draws_by_weight_and_varies_as_each_part_does(data):
    batches = Pipeline(data.open("train"), 40, seed=1)
    batch = next(batches)
    batches.close()
    assert (batch["domain"] == 1).sum() == 30
    boxes = batch["boxes"][batch["domain"] == 1]
    cats = boxes[batch["classes"][batch["domain"] == 1] == 10]
    assert len(np.unique(cats, axis=0)) > 5  # parts of the images, drawn each time


def test_the_fingerprint_holds_weights_parts_and_classes(data):
    def fingerprint(mixture):
        return json.dumps(dict(mixture.open("train").fingerprint))

    first, second = data.parts
    others = (
        replace(data, parts=(second, first)),
        replace(data, parts=(first.replace(": 1", ": 2"), second)),
        replace(data, parts=(first.replace("rows=12", "rows=13"), second)),
    )
    assert fingerprint(data) == fingerprint(data)
    assert len({fingerprint(one) for one in (data, *others)}) == 4


def test_names_are_known_before_the_data_where_all_parts_know_theirs(data, folder):
    assert data.class_names() == ()  # files say theirs when they are opened
    assert BoxMixture().class_names() == tuple("0123456789")
    assert CocoFolder(path=str(folder)).classes() == ("cat", "3")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("digits: 1",), "no kind 'digits'"),
        (("stdlib_text: 1",), "no kind 'stdlib_text'"),
        (("digit_scenes(height=8): 1",), "height is the mixture's"),
        (("moe_jax.data.digits:Digits: 1",), "has no max_objects: parts are images with objects"),
        (("moe_jax.data.planted:Planted: 1",), "has no height: parts are images with objects"),
        (("digit_scenes: 1", "digit_scenes: 2"), "two parts are named digit_scenes"),
        (("digit_scenes(rows=0): 1",), "must be at least 1"),
        ((), "at least one part"),
    ],
)
def test_wrong_parts_are_told(parts, message):
    mixture = BoxMixture(parts=parts)
    (problem,) = check(mixture)
    assert problem.path == "parts" and mixture.class_names() == ()
    assert mixture.columns()["image"].shape == (64, 64, 3)
    with pytest.raises(UserError, match=message):
        mixture.open("train")


def test_sizes_are_told_first():
    assert {p.path for p in check(BoxMixture(height=0, width=-1))} == {"height", "width"}
