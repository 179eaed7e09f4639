"""One class a row: sums and metrics against scikit-learn, and what does not count."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from moe_jax.data.types import ArraySpec, DataInfo, text_columns
from moe_jax.models.types import IO, RowClass
from moe_jax.nn.predictions import ClassLogits
from moe_jax.routing.plan import add_sums
from moe_jax.tasks.classification import BINS, Classification, ClassOfRow, macro_f1

B, C = 60, 7
DOMAINS = ("film", "shop")


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    label = random.integers(0, C - 1, B).astype(np.int32)  # the last class never occurs
    logits = random.normal(size=(B, C)).astype(np.float32) * 2
    logits[np.arange(B), label] += 1.5
    label[::9] = -1
    domain = random.integers(0, 2, B).astype(np.int32)
    raw = {"label": jnp.asarray(label), "domain": jnp.asarray(domain)}
    return jnp.asarray(logits), raw


def softmax(logits):
    power = np.exp(np.asarray(logits, np.float64))
    return power / power.sum(axis=1, keepdims=True)


def test_metrics_are_scikit_learns(batch):
    logits, raw = batch
    task = ClassOfRow(C, domains=DOMAINS)
    sums = jax.device_get(task.sums(ClassLogits(logits_BC=logits), raw))
    found = task.metrics(sums)
    counted = np.asarray(raw["label"]) >= 0
    label, prob = np.asarray(raw["label"])[counted], softmax(logits)[counted]
    best = prob.argmax(axis=1)
    assert found["cross_entropy"] == pytest.approx(sk.log_loss(label, prob, labels=range(C)), 1e-6)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(label, best))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(label, best, average="macro"))
    top5 = sk.top_k_accuracy_score(label, prob, k=5, labels=range(C))
    assert found["top5_accuracy"] == pytest.approx(top5)
    np.testing.assert_array_equal(
        sums["confusion"], sk.confusion_matrix(label, best, labels=range(C))
    )
    confidence, edges = prob.max(axis=1), np.linspace(0, 1, BINS + 1)
    error = 0.0
    for low, high in itertools.pairwise(edges):
        here = (confidence > low) & (confidence <= high)
        if here.any():
            gap = abs((best == label)[here].mean() - confidence[here].mean())
            error += here.mean() * gap
    assert found["calibration_error"] == pytest.approx(error, 1e-5)
    domain = np.asarray(raw["domain"])[counted]
    for number, name in enumerate(DOMAINS):
        own = domain == number
        accuracy = sk.accuracy_score(label[own], best[own])
        assert found[f"domain/{name}/accuracy"] == pytest.approx(accuracy)
    assert next(h.name for h in Classification.headlines if h.name in found) == "accuracy"


def test_f1_of_classes_that_do_not_occur():
    """Neither as label nor as prediction: they are left out, as scikit-learn does."""
    label, best = np.array([0, 0, 2, 2, 4]), np.array([0, 2, 2, 2, 0])
    confusion = sk.confusion_matrix(label, best, labels=range(6))
    assert macro_f1(confusion) == pytest.approx(sk.f1_score(label, best, average="macro"))


def test_sums_of_parts_are_those_of_the_whole(batch):
    logits, raw = batch
    task = ClassOfRow(C, domains=DOMAINS)

    def sums(rows):
        part = {name: column[rows] for name, column in raw.items()}
        return task.sums(ClassLogits(logits_BC=logits[rows]), part)

    whole, parts = sums(slice(None)), add_sums(sums(slice(0, 23)), sums(slice(23, B)))
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-6, err_msg=name)
    weights = [
        task.weights({"label": raw["label"][s]})["nats"] for s in (slice(0, 23), slice(23, B))
    ]
    assert float(sum(weights)) == float(whole["rows"]) == float(task.weights(raw)["nats"])


def test_rows_without_a_label_have_no_gradient(batch):
    logits, raw = batch
    task = ClassOfRow(C)
    grads = jax.grad(lambda x: task.sums(ClassLogits(logits_BC=x), raw)["nats"])(logits)
    unlabelled = np.asarray(raw["label"]) < 0
    assert not np.any(np.asarray(grads)[unlabelled])
    assert np.all(np.any(np.asarray(grads)[~unlabelled], axis=1))
    token = task.token_losses(ClassLogits(logits_BC=logits), raw)
    assert token.shape == (B, 1) and not np.any(np.asarray(token)[unlabelled])


def test_smoothed_labels_and_mixtures(batch):
    """(1 - e) 1[c = label] + e / C; a mixture's target is share and 1 - share of two labels."""
    logits, raw = batch
    log_prob = np.log(softmax(logits))
    label = np.asarray(raw["label"])
    counted = label >= 0
    target = np.eye(C)[np.maximum(label, 0)]
    smoothed = 0.8 * target + 0.2 / C
    nats = -(smoothed * log_prob).sum(axis=1)[counted].sum()
    found = ClassOfRow(C, 0.2).sums(ClassLogits(logits_BC=logits), raw)["nats"]
    assert float(found) == pytest.approx(nats, 1e-5)
    random = np.random.default_rng(1)
    other, share = random.integers(0, C, B).astype(np.int32), random.random(B).astype(np.float32)
    mixed = {**raw, "other_label": jnp.asarray(other), "share": jnp.asarray(share)}
    target = share[:, None] * target + (1 - share[:, None]) * np.eye(C)[other]
    nats = -(target * log_prob).sum(axis=1)[counted].sum()
    found = ClassOfRow(C).sums(ClassLogits(logits_BC=logits), mixed)["nats"]
    assert float(found) == pytest.approx(nats, 1e-5)


def test_what_it_reads_and_gives():
    text = {**text_columns(12), "label": ArraySpec(padding=-1), "rating": ArraySpec()}
    task = Classification(classes=3)
    assert task.reads(text) == ("tokens", "segments", "label", "domain")
    assert task.io(text) == IO(length=12, gives=RowClass(3)) == IO(length=12, classes=3)
    image = {"image": ArraySpec((8, 6, 3), "float32"), "label": ArraySpec(padding=-1)}
    assert task.reads(image) == ("image", "label")
    assert task.io(image) == IO(image=(8, 6, 3), gives=RowClass(3))
    info = DataInfo(classes=("a", "b"))
    assert Classification().completed(info).classes == 2
    assert list(Classification(classes=2).fits(info)) == []
    assert (
        "at least the 3"
        in next(iter(task.__class__(classes=2).fits(DataInfo(classes=tuple("abc")))))[1]
    )
    assert "takes 2" in next(iter(Classification().fits(DataInfo())))[1]
