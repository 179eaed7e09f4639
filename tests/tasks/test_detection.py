"""A set of objects: losses by loops in float64, what does not count, figures of rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.special import expit

from moe_jax.config.checks import check
from moe_jax.data.types import ArraySpec, DataInfo
from moe_jax.models.types import IO, ObjectBoxes
from moe_jax.nn.predictions import BoxPredictions
from moe_jax.routing.plan import add_sums
from moe_jax.tasks.detection import LOSSES, Detection, SetOfObjects, detections

B, L, Q, N, C = 6, 3, 9, 4, 5
OBJECTS = np.array([0, 4, 2, 1, 3, -1], np.int32)  # the last row fills up a batch


def boxes(random, *shape):
    middle, size = random.uniform(0.2, 0.8, (*shape, 2)), random.uniform(0.1, 0.4, (*shape, 2))
    return np.concatenate([middle, size], axis=-1).astype(np.float32)


@pytest.fixture
def predictions():
    random = np.random.default_rng(0)
    logits = random.normal(size=(B, L, Q, C)).astype(np.float32)
    return BoxPredictions(
        logits_BLQC=jnp.asarray(logits), box_BLQ4=jnp.asarray(boxes(random, B, L, Q))
    )


@pytest.fixture
def raw():
    random = np.random.default_rng(1)
    there = np.arange(N)[None] < OBJECTS[:, None]
    classes = np.where(there, random.integers(0, C - 1, (B, N)), -1).astype(np.int32)
    found = np.where(there[..., None], boxes(random, B, N), 0).astype(np.float32)
    return {
        "boxes": jnp.asarray(found),
        "classes": jnp.asarray(classes),
        "objects": jnp.asarray(OBJECTS),
        "domain": jnp.asarray([0, 0, 0, 1, 1, 0], jnp.int32),
        "row": jnp.asarray([0, 1, 2, 3, 4, -1], jnp.int32),
        "image": jnp.zeros((B, 4, 4, 3)),
    }


def overlap(a, b):
    """Generalised IoU of two boxes (x, y, w, h)."""
    (low_a, high_a), (low_b, high_b) = ((x[:2] - x[2:] / 2, x[:2] + x[2:] / 2) for x in (a, b))
    inner = np.prod(np.maximum(np.minimum(high_a, high_b) - np.maximum(low_a, low_b), 0))
    union = np.prod(a[2:]) + np.prod(b[2:]) - inner
    hull = np.prod(np.maximum(high_a, high_b) - np.minimum(low_a, low_b))
    return inner / union - (hull - union) / hull


def focal(logits, there, alpha=0.25, gamma=2.0):
    p = expit(logits)
    of_there = -alpha * (1 - p) ** gamma * np.log(p)
    return np.where(there, of_there, -(1 - alpha) * p**gamma * np.log(1 - p))


def by_loops(task, logits_QC, box_Q4, true, classes):
    """(the losses of a layer for one image, the prediction of each object)."""
    logits, box, true = (np.asarray(x, np.float64) for x in (logits_QC, box_Q4, true))
    cost = np.zeros((Q, len(classes)))
    for q, n in np.ndindex(cost.shape):
        one = logits[q, classes[n]]
        cost[q, n] = task.class_weight * (focal(one, True) - focal(one, False))
        cost[q, n] += task.box_weight * np.abs(box[q] - true[n]).sum()
        cost[q, n] -= task.giou_weight * overlap(box[q], true[n])
    taken, order = linear_sum_assignment(cost)
    wanted = np.zeros((Q, C), bool)
    wanted[taken, np.asarray(classes)[order]] = True
    pairs = list(zip(taken, order, strict=True))
    losses = {
        "class_loss": task.class_weight * focal(logits, wanted).sum(),
        "box_loss": task.box_weight * sum(np.abs(box[q] - true[n]).sum() for q, n in pairs),
        "giou_loss": task.giou_weight * sum(1 - overlap(box[q], true[n]) for q, n in pairs),
    }
    return losses, taken[np.argsort(order)]


@pytest.mark.parametrize("copies", [1, 2])
def test_losses_are_those_of_loops(predictions, raw, copies):
    """As the scipy matching and the papers' formulas have them, every layer added; the earlier ones
    with each object several times."""
    task = Detection(classes=C, copies=copies, class_weight=1.5)
    objective = SetOfObjects(task)
    sums = jax.device_get(jax.jit(objective.sums)(predictions, raw))
    wanted = dict.fromkeys(LOSSES, 0.0)
    for b, layer in np.ndindex(B - 1, L):
        n, times = OBJECTS[b], 1 if layer == L - 1 else copies
        true = np.tile(np.asarray(raw["boxes"])[b, :n], (times, 1))
        classes = np.tile(np.asarray(raw["classes"])[b, :n], times)
        arrays = predictions.logits_BLQC[b, layer], predictions.box_BLQ4[b, layer]
        losses, taken = by_loops(task, *arrays, true, classes)
        for name in LOSSES:
            wanted[name] += losses[name] / times
        if layer == L - 1:
            found = np.asarray(objective.matches(predictions, raw))[b]
            assert found[:n].tolist() == taken.tolist() and (found[n:] == Q).all()
    assert {name: sums[name] for name in LOSSES} == pytest.approx(wanted, rel=1e-5)
    assert (int(sums["rows"]), int(sums["objects"])) == (5, 10)
    assert all(float(weight) == 10 for weight in objective.weights(raw).values())


def test_sums_of_parts_are_those_of_the_whole(predictions, raw):
    task = SetOfObjects(Detection(classes=C, copies=2))

    def sums(rows):
        part = jax.tree.map(lambda leaf: leaf[rows], predictions)
        return jax.jit(task.sums)(part, {name: leaf[rows] for name, leaf in raw.items()})

    whole, parts = sums(slice(None)), add_sums(sums(slice(0, 2)), sums(slice(2, B)))
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5, err_msg=name)


def test_padding_has_no_gradient_and_no_objects_have_one(predictions, raw):
    """An image without objects teaches that there is none; a row that fills up a batch nothing; no
    empty box makes a gradient that is no number."""
    task = SetOfObjects(Detection(classes=C))

    def total(predictions):
        sums = task.sums(predictions, raw)
        return sum(sums[name] for name in LOSSES)

    grads = jax.tree.map(np.asarray, jax.jit(jax.grad(total))(predictions))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert not grads.logits_BLQC[5].any() and not grads.box_BLQ4[5].any()
    assert (grads.logits_BLQC[0] > 0).all() and not grads.box_BLQ4[0].any()
    matched = (grads.box_BLQ4 != 0).any(axis=-1).sum(axis=2)
    np.testing.assert_array_equal(matched, np.broadcast_to(np.maximum(OBJECTS, 0)[:, None], (B, L)))
    assert list(np.asarray(task.inputs(raw).valid_B)) == [True] * 5 + [False]
    losses = np.asarray(task.token_losses(predictions, raw))
    assert losses.shape == (B, 1) and losses[5] == 0 and (losses[:5] > 0).all()


def test_empty_batches_and_numbers_that_are_none(predictions, raw):
    task = SetOfObjects(Detection(classes=C))
    none = {**raw, "classes": jnp.full((B, N), -1), "objects": jnp.zeros(B, jnp.int32)}
    sums, rows = task.sums(predictions, none), task.rows(predictions, none)
    found = task.metrics(jax.device_get(sums), jax.device_get(rows))
    assert found["average_precision"] == found["ap50"] == 0 == found["box_loss"]
    assert np.isfinite(list(found.values())).all() and found["class_loss"] > 0
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, predictions)
    assert not np.isfinite(float(task.sums(broken, raw)["class_loss"]))  # and it ends


def test_figures_of_what_is_found_exactly(raw):
    """1 where each object has a sure prediction in its place, whatever else is unsure; by class and
    by domain."""
    logits, box = np.full((B, 1, Q, C), -4.0, np.float32), np.zeros((B, 1, Q, 4), np.float32)
    box[..., 2:] = 0.01
    for b, n in np.ndindex(B, N):
        if raw["classes"][b, n] >= 0:
            logits[b, 0, 2 * n, raw["classes"][b, n]] = 4.0
            box[b, 0, 2 * n] = raw["boxes"][b, n]
    sure = BoxPredictions(logits_BLQC=jnp.asarray(logits), box_BLQ4=jnp.asarray(box))
    names = tuple("abcde")
    task = SetOfObjects(Detection(classes=C), names, ("one", "two"))

    def figures(predictions):
        given = jax.device_get((task.sums(predictions, raw), task.rows(predictions, raw)))
        valid = np.asarray(raw["objects"]) >= 0
        return task.metrics(given[0], {name: leaf[valid] for name, leaf in given[1].items()})

    found = figures(sure)
    assert found["average_precision"] == pytest.approx(1.0) == found["ap75"]
    there = {names[c] for c in np.unique(raw["classes"]) if c >= 0}
    assert {name for name in found if name.startswith("ap/")} == {f"ap/{name}" for name in there}
    assert found["domain/one/average_precision"] == pytest.approx(1.0)
    logits[3:] *= -1
    worse = figures(BoxPredictions(logits_BLQC=jnp.asarray(logits), box_BLQ4=jnp.asarray(box)))
    assert worse["domain/two/average_precision"] < 0.2 < worse["average_precision"] < 1
    assert worse["domain/one/average_precision"] == pytest.approx(1.0)
    assert next(h.name for h in Detection.headlines if h.name in found) == "average_precision"


def test_a_class_that_a_domain_does_not_have_is_wrong_there(raw):
    """A sure detection of another data set's class takes precision from that class, and nothing
    from the domain's own, which are all that its average is over."""
    logits, box = np.full((B, 1, Q, C), -9.0, np.float32), np.zeros((B, 1, Q, 4), np.float32)
    box[..., 2:] = 0.01
    classes = np.where(np.asarray(raw["classes"]) >= 0, 0, -1)
    classes[3:5] = np.where(classes[3:5] >= 0, 1, -1)  # the second domain has class 1 alone
    for b, n in np.argwhere(classes >= 0):
        logits[b, 0, 2 * n, classes[b, n]] = 4.0
        box[b, 0, 2 * n] = raw["boxes"][b, n]
    given = {**raw, "classes": jnp.asarray(classes, jnp.int32)}
    task = SetOfObjects(Detection(classes=C), tuple("abcde"), ("one", "two"))

    def figures():
        sure = BoxPredictions(logits_BLQC=jnp.asarray(logits), box_BLQ4=jnp.asarray(box))
        found = jax.device_get((task.sums(sure, given), task.rows(sure, given)))
        return task.metrics(found[0], {name: leaf[:5] for name, leaf in found[1].items()})

    own = ("domain/one/average_precision", "domain/two/average_precision")
    before = figures()
    assert [before[name] for name in (*own, "ap/a", "ap/b")] == pytest.approx([1.0] * 4)
    logits[3, 0, 8, 0] = 9.0
    after = figures()
    assert [after[name] for name in (*own, "ap/b")] == pytest.approx([1.0] * 3)
    assert after["ap/a"] < 0.95 and after["average_precision"] < before["average_precision"]
    assert {name for name in after if name.startswith("ap/")} == {"ap/a", "ap/b"}


def test_rows_tell_their_domain_to_routers(raw):
    columns, names = {"image": ArraySpec((4, 4, 3)), "domain": ArraySpec()}, ("one", "two")
    assert Detection().row_tasks(columns, names) == names
    assert Detection().row_tasks({"image": ArraySpec((4, 4, 3))}, names) is None
    task = Detection(classes=C).start(0, DataInfo(domains=names))
    np.testing.assert_array_equal(task.inputs(raw).task_B, raw["domain"])
    alone = {name: leaf for name, leaf in raw.items() if name != "domain"}
    assert task.inputs(alone).task_B is None


def test_detections_are_the_best_pairs_of_the_last_layer(predictions):
    box, number, score = (np.asarray(x) for x in detections(predictions))
    assert box.shape == (B, Q * C, 4) and (np.diff(score, axis=1) <= 0).all()
    logits = np.asarray(predictions.logits_BLQC[:, -1])
    for b in range(B):
        q, c = np.unravel_index(logits[b].argmax(), (Q, C))
        assert number[b, 0] == c and score[b, 0] == pytest.approx(expit(logits[b, q, c]))
        np.testing.assert_array_equal(box[b, 0], predictions.box_BLQ4[b, -1, q])


def test_members_are_averaged_by_query(predictions):
    both = predictions.averaged(2)
    assert both.box_BLQ4.shape == (B // 2, L, Q, 4)
    np.testing.assert_allclose(
        jax.nn.sigmoid(both.logits_BLQC[1]),
        jax.nn.sigmoid(predictions.logits_BLQC[2:4]).mean(axis=0),
        rtol=1e-5,
    )


def test_what_it_reads_and_gives():
    columns = {
        "image": ArraySpec((8, 6, 3), "float32"),
        "boxes": ArraySpec((N, 4), "float32"),
        "classes": ArraySpec((N,), padding=-1),
        "objects": ArraySpec(padding=-1),
    }
    task = Detection(classes=3, copies=2)
    assert task.reads(columns) == ("image", "boxes", "classes", "objects")
    assert task.reads({**columns, "domain": ArraySpec()})[-1] == "domain"
    assert task.io(columns) == IO(image=(8, 6, 3), gives=ObjectBoxes(3, 2 * N))
    assert Detection().completed(DataInfo(classes=("a",))).classes == 1
    assert "takes 1" in next(iter(Detection().fits(DataInfo())))[1]
    assert "at least the 4" in next(iter(task.fits(DataInfo(classes=tuple("abcd")))))[1]
    problems = {p.path for p in check(Detection(copies=0, alpha=2, box_weight=-1))}
    assert problems == {"copies", "alpha", "box_weight"}
