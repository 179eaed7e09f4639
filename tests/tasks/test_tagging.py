"""Several labels a row: sums and metrics against scikit-learn, and what does not count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from moe_jax.data.types import ArraySpec, DataInfo, text_columns
from moe_jax.models.types import IO, RowLabels
from moe_jax.nn.predictions import ClassLogits, LabelLogits
from moe_jax.routing.plan import add_sums
from moe_jax.tasks.tagging import LabelsOfRow, Tagging, average_precision

B, C = 50, 6


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    labels = (random.random((B, C)) < [0.5, 0.2, 0.1, 0.4, 0.3, 0.0]).astype(np.int32)
    logits = random.normal(size=(B, C)).astype(np.float32) + 2 * labels - 1
    logits = np.round(logits, 1)  # some are equal
    labels[::7] = -1
    return LabelLogits(logits_BC=jnp.asarray(logits)), {"labels": jnp.asarray(labels)}


def test_metrics_are_scikit_learns(batch):
    predictions, raw = batch
    task = LabelsOfRow(C)
    sums, rows = jax.device_get((task.sums(predictions, raw), task.rows(predictions, raw)))
    known = np.asarray(raw["labels"])[:, 0] >= 0
    found = task.metrics(sums, {name: x[known] for name, x in rows.items()})
    labels = np.asarray(raw["labels"])[known]
    logits = np.asarray(predictions.logits_BC, np.float64)[known]
    told = logits > 0
    prob = 1 / (1 + np.exp(-logits))
    nats = -np.where(labels == 1, np.log(prob), np.log(1 - prob)).mean()
    assert found["cross_entropy"] == pytest.approx(nats, 1e-5)
    assert found["micro_f1"] == pytest.approx(sk.f1_score(labels, told, average="micro"))
    occurs = (labels.any(axis=0)) | told.any(axis=0)
    macro = sk.f1_score(labels[:, occurs], told[:, occurs], average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(macro)
    there = labels.any(axis=0)
    wanted = sk.average_precision_score(labels[:, there], logits[:, there], average="macro")
    assert found["mean_average_precision"] == pytest.approx(wanted)
    assert next(h.name for h in Tagging.headlines if h.name in found) == "mean_average_precision"


def test_average_precision_of_equal_scores_and_of_none():
    random = np.random.default_rng(1)
    for n in range(20):
        score, there = random.integers(0, 4, 30), random.random(30) < 0.3
        there[n] = True
        wanted = sk.average_precision_score(there, score)
        assert average_precision(score, there) == pytest.approx(wanted)
    assert np.isnan(average_precision(np.arange(3), np.zeros(3, bool)))


def test_sums_of_parts_and_rows_without_labels(batch):
    predictions, raw = batch
    task = LabelsOfRow(C)

    def sums(rows):
        part = LabelLogits(logits_BC=predictions.logits_BC[rows])
        return task.sums(part, {"labels": raw["labels"][rows]})

    whole, parts = sums(slice(None)), add_sums(sums(slice(0, 20)), sums(slice(20, B)))
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-6, err_msg=name)
    assert float(whole["decisions"]) == float(task.weights(raw)["nats"])
    grads = jax.grad(lambda x: task.sums(LabelLogits(logits_BC=x), raw)["nats"])(
        predictions.logits_BC
    )
    without = np.asarray(raw["labels"])[:, 0] < 0
    assert not np.asarray(grads)[without].any() and np.asarray(grads)[~without].all()
    empty = {"labels": jnp.full((B, C), -1)}
    found = task.metrics(jax.device_get(task.sums(predictions, empty)))
    assert all(np.isfinite(value) and value == 0 for value in found.values())
    assert task.token_losses(predictions, raw).shape == (B, 1)


def test_the_mean_of_members_is_that_of_their_probabilities(batch):
    predictions, _ = batch
    joined = predictions.averaged(2).logits_BC
    prob = jax.nn.sigmoid(predictions.logits_BC).reshape(-1, 2, C).mean(axis=1)
    np.testing.assert_allclose(jax.nn.sigmoid(joined), prob, rtol=1e-5)
    of_classes = ClassLogits(logits_BC=predictions.logits_BC).averaged(2).logits_BC
    prob = jax.nn.softmax(predictions.logits_BC).reshape(-1, 2, C).mean(axis=1)
    np.testing.assert_allclose(jax.nn.softmax(of_classes), prob, rtol=1e-5)


def test_what_it_reads_and_gives():
    text = {**text_columns(12), "labels": ArraySpec((3,), padding=-1)}
    task = Tagging(classes=3)
    assert task.reads(text) == ("tokens", "segments", "labels")
    assert task.io(text) == IO(length=12, gives=RowLabels(3))
    image = {"image": ArraySpec((8, 6, 3), "float32"), "labels": ArraySpec((3,), padding=-1)}
    assert task.reads(image) == ("image", "labels")
    assert task.io(image).floats == 3
    assert Tagging().completed(DataInfo(classes=("a", "b"))).classes == 2
    assert "names no labels" in next(iter(Tagging().fits(DataInfo())))[1]
    assert "must be the 2" in next(iter(task.fits(DataInfo(classes=("a", "b")))))[1]
