"""One class a pixel: sums and metrics against scikit-learn, and what does not count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from moe_jax.data.types import ArraySpec, DataInfo
from moe_jax.models.types import IO, PixelClass
from moe_jax.nn.predictions import PixelLogits
from moe_jax.routing.plan import add_sums
from moe_jax.tasks.segmentation import ClassOfPixel, Segmentation, by_patch

B, H, W, C = 6, 8, 12, 5
GRID = (2, 3)


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    label = random.integers(0, C - 1, (B, H, W)).astype(np.int32)  # the last class never occurs
    logits = random.normal(size=(B, H, W, C)).astype(np.float32)
    np.put_along_axis(logits, label[..., None], 2.0, axis=-1)
    logits[..., C - 1] = -9.0
    label[:, ::3, ::5] = -1
    label[2] = -1
    return PixelLogits(logits_BHWC=jnp.asarray(logits), grid=GRID), {
        "label_map": jnp.asarray(label)
    }


def test_metrics_are_scikit_learns(batch):
    predictions, raw = batch
    task = ClassOfPixel(C, tuple("abcde"))
    found = task.metrics(jax.device_get(task.sums(predictions, raw)))
    label = np.asarray(raw["label_map"]).ravel()
    logits = np.asarray(predictions.logits_BHWC, np.float64).reshape(-1, C)[label >= 0]
    label = label[label >= 0]
    prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    best = logits.argmax(axis=1)
    assert found["cross_entropy"] == pytest.approx(sk.log_loss(label, prob, labels=range(C)), 1e-5)
    assert found["pixel_accuracy"] == pytest.approx(sk.accuracy_score(label, best))
    assert found["mean_iou"] == pytest.approx(sk.jaccard_score(label, best, average="macro"))
    each = sk.jaccard_score(label, best, average=None)
    assert [found[f"iou/{name}"] for name in "abcd"] == pytest.approx(list(each))
    assert "iou/e" not in found  # neither as label nor as prediction
    assert next(h.name for h in Segmentation.headlines if h.name in found) == "mean_iou"


def test_sums_of_parts_are_those_of_the_whole(batch):
    predictions, raw = batch
    task = ClassOfPixel(C)

    def sums(rows):
        part = PixelLogits(logits_BHWC=predictions.logits_BHWC[rows], grid=GRID)
        return task.sums(part, {"label_map": raw["label_map"][rows]})

    whole, parts = sums(slice(None)), add_sums(sums(slice(0, 2)), sums(slice(2, B)))
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-6, err_msg=name)
    assert float(whole["pixels"]) == float(task.weights(raw)["nats"])


def test_pixels_without_a_label_have_no_gradient(batch):
    predictions, raw = batch
    task = ClassOfPixel(C)

    def nats(logits):
        return task.sums(PixelLogits(logits_BHWC=logits, grid=GRID), raw)["nats"]

    grads = np.asarray(jax.grad(nats)(predictions.logits_BHWC))
    without = np.asarray(raw["label_map"]) < 0
    assert not grads[without].any() and grads[~without].any(axis=-1).all()
    number = jnp.asarray([0, 1, 2, 3, 4, -1], jnp.int32)  # the third has no label, the last fills
    inputs = task.inputs({**raw, "image": 0, "row": number})
    assert list(np.asarray(inputs.valid_B)) == [True] * 5 + [False]
    empty = {"label_map": jnp.full((B, H, W), -1)}
    assert task.metrics(jax.device_get(task.sums(predictions, empty))) == {
        "cross_entropy": 0.0, "pixel_accuracy": 0.0, "mean_iou": 0.0
    }  # fmt: skip


def test_the_loss_of_a_patch_is_the_mean_of_its_pixels(batch):
    predictions, raw = batch
    task = ClassOfPixel(C)
    found = np.asarray(task.token_losses(predictions, raw))
    nll = np.asarray(task._nll(predictions, raw))
    valid = np.asarray(raw["label_map"]) >= 0
    for row, column in np.ndindex(GRID):
        part = np.s_[1, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        mean = nll[part][valid[part]].mean()
        assert found[1, row * GRID[1] + column] == pytest.approx(mean, 1e-5)
    assert not found[2].any()
    assert float(by_patch(jnp.ones((B, H, W)), GRID)[0, 0]) == 16


def test_what_it_reads_and_gives():
    columns = {
        "image": ArraySpec((8, 6, 3), "float32"),
        "label_map": ArraySpec((8, 6), padding=-1),
        "other": ArraySpec(),
    }
    task = Segmentation(classes=3)
    assert task.reads(columns) == ("image", "label_map")
    assert task.io(columns) == IO(image=(8, 6, 3), gives=PixelClass(3))
    assert task.io(columns).floats == 8 * 6 * 3
    assert Segmentation().completed(DataInfo(classes=("a", "b"))).classes == 2
    assert "takes 2" in next(iter(Segmentation().fits(DataInfo())))[1]
    assert "at least the 4" in next(iter(task.fits(DataInfo(classes=tuple("abcd")))))[1]
