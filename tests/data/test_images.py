"""Images with classes: digits, folders of files, and how training varies them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.data.digits import Digits
from moe_jax.data.image_folder import ImageFolder
from moe_jax.data.images import Augmentation
from moe_jax.data.pipeline import EvaluationBatches, Pipeline
from moe_jax.data.types import columns_of


def test_digits_are_scikit_learns():
    train, held = Digits().open("train"), Digits().open("validation")
    known = load_digits()
    assert (len(train), len(held)) == (1437, 360)
    assert train.classes == tuple("0123456789")
    number = [i for i in range(len(known.target)) if i % 5][100]
    row = train[100]
    np.testing.assert_allclose(
        row["image"][..., 0], (known.images[number] / 16 - 0.3) / 0.38, atol=1e-6
    )
    assert int(row["label"]) == known.target[number]
    labels = sorted(int(held[i]["label"]) for i in range(len(held)))
    assert labels == sorted(known.target[::5].tolist())
    pixels = np.stack([train[i]["image"] for i in range(len(train))])
    assert abs(pixels.mean()) < 0.05 and abs(pixels.std() - 1) < 0.05


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("cat", (250, 10, 10)), ("dog", (10, 10, 250))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for n in range(30):
            pixels = np.full((20 + n, 30, 3), colour, np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"images/{name}/{n}.png")
    (tmp_path / "images/cat/notes.txt").write_text("no image")
    return tmp_path / "images"


def test_a_folder_of_images(folder):
    data = ImageFolder(path=str(folder), height=12, width=16, validation_fraction=0.3)
    train, held = data.open("train"), data.open("validation")
    assert train.classes == ("cat", "dog")
    assert len(train) + len(held) == 60 and len(held) > 5
    for i in range(len(train)):
        row = train[i]
        assert row["image"].shape == (12, 16, 3)
        red, blue = row["image"][..., 0].mean(), row["image"][..., 2].mean()
        assert (red > blue) == (row["label"] == 0)
    grey = replace(data, channels=1).open("train")[0]["image"]
    assert grey.shape == (12, 16, 1)


def test_what_is_wrong_with_images_is_told(folder, tmp_path):
    (folder / "dog/0.png").write_bytes(b"no image")
    data = ImageFolder(path=str(folder), validation=str(folder))
    rows = data.open("train")
    with pytest.raises(UserError, match=r"dog.0.png: cannot be read as an image"):
        [rows[i] for i in range(len(rows))]
    with pytest.raises(UserError, match=r"data.path: no folder"):
        ImageFolder(path=str(tmp_path / "gone")).open("train")
    with pytest.raises(UserError, match="has 0 folders; each class needs one"):
        ImageFolder(path=str(folder / "cat")).open("train")
    assert [p.path for p in check(Digits(height=9))] == ["height"]
    crowded = Digits(augmentation=Augmentation(crop=4))
    assert [p.path for p in check(crowded)] == ["augmentation.crop"]


def test_mirrored_and_moved():
    image = np.arange(2 * 4 * 4, dtype=np.float32).reshape(4, 4, 2) + 1
    random = np.random.default_rng(0)
    np.testing.assert_array_equal(Augmentation(flip=1.0).moved(image, random), image[:, ::-1])
    seen = set()
    for _ in range(200):
        moved = Augmentation(crop=1).moved(image, random)
        assert moved.shape == image.shape
        shifts = [
            (y, x)
            for y in (-1, 0, 1)
            for x in (-1, 0, 1)
            if np.array_equal(moved, shifted(image, y, x))
        ]
        assert len(shifts) == 1
        seen.add(shifts[0])
    assert len(seen) == 9


def shifted(image, y, x):
    moved = np.zeros_like(image)
    H, W = image.shape[:2]
    moved[max(-y, 0) : H - max(y, 0), max(-x, 0) : W - max(x, 0)] = image[
        max(y, 0) : H + min(y, 0), max(x, 0) : W + min(x, 0)
    ]
    return moved


def test_variation_is_of_the_position_alone():
    """A run that goes on sees what an undisturbed one would; a second epoch sees other variants;
    evaluation sees none."""
    data = Digits(augmentation=Augmentation(flip=0.5, crop=1, mixup=0.4))
    rows = data.open("train")

    def batches(start, count):
        pipeline = Pipeline(rows, 32, seed=5, start=start)
        found = [next(pipeline) for _ in range(count)]
        pipeline.close()
        return found

    whole, later = batches(0, 4), batches(64, 2)
    for one, two in zip(whole[2:], later, strict=True):
        assert one.keys() == two.keys() == columns_of(data).keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    share = np.concatenate([batch["share"] for batch in whole])
    assert 0 <= share.min() < 0.2 and 0.8 < share.max() <= 1
    variants = [rows.augmented(3, np.random.default_rng([5, p, 1]))["image"] for p in (3, 1440)]
    assert not np.array_equal(*variants)
    held = data.open("validation")
    batch = next(iter(EvaluationBatches(held, 256, columns=columns_of(data))))
    np.testing.assert_array_equal(batch["share"], 1)
    np.testing.assert_array_equal(batch["image"][0], held[0]["image"])


def test_a_mixture_is_one_of_two_images():
    rows = Digits(augmentation=Augmentation(mixup=1.0)).open("train")
    row = rows.augmented(7, np.random.default_rng(2))
    others = [
        rows[i]
        for i in range(len(rows))
        if np.allclose(
            row["image"], row["share"] * rows[7]["image"] + (1 - row["share"]) * rows[i]["image"],
            atol=1e-5,
        )
    ]  # fmt: skip
    assert [int(other["label"]) for other in others] == [int(row["other_label"])]
    assert int(row["label"]) == int(rows[7]["label"])


def test_the_last_batch_is_filled_with_rows_that_nothing_counts():
    data = Digits()
    batches = list(EvaluationBatches(data.open("validation"), 256, columns=columns_of(data)))
    assert [int((batch["label"] >= 0).sum()) for batch in batches] == [256, 104]


def test_fingerprints_are_json_and_hang_on_the_images(folder):
    data = ImageFolder(path=str(folder))
    before = json.dumps(data.open("train").fingerprint)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "cat/new.png")
    assert json.dumps(data.open("train").fingerprint) != before
