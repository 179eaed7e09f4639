"""Several targets a row: figures of scikit-learn, unknown targets, and how losses are weighed."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from moe_jax.config.checks import check
from moe_jax.data.types import ArraySpec, DataInfo
from moe_jax.models.types import Targets
from moe_jax.nn.predictions import TargetValues
from moe_jax.routing.plan import add_sums
from moe_jax.tasks.multi_task import MultiTask, TargetsOfRow, area_under_curve

B = 60
TASK = MultiTask(binary=("a", "b"), real=("c",))


def objective(task=TASK):
    return task.start(0, DataInfo())


@pytest.fixture
def batch():
    """b is unknown in a third of the rows, c in others, all of it in every seventh."""
    random = np.random.default_rng(0)
    raw = {
        "a": (random.random(B) < 0.3).astype(np.float32),
        "b": (random.random(B) < 0.6).astype(np.float32),
        "c": random.normal(size=B).astype(np.float32),
        "numbers": random.normal(size=(B, 3)).astype(np.float32),
        "row": np.arange(B, dtype=np.int32),
    }
    raw["b"][::3] = raw["c"][1::4] = np.nan
    for name in "abc":
        raw[name][::7] = np.nan
    value = np.round(random.normal(size=(B, 3)).astype(np.float32), 1)  # some are equal
    predictions = TargetValues(value_BT=jnp.asarray(value), binary=2)
    return predictions, {name: jnp.asarray(x) for name, x in raw.items()}


def figures(predictions, raw, task=TASK):
    of = objective(task)
    return of.metrics(of.sums(predictions, raw), jax.device_get(of.rows(predictions, raw)))


def test_metrics_are_scikit_learns(batch):
    predictions, raw = batch
    found, value = figures(*batch), np.asarray(predictions.value_BT, np.float64)
    areas, nats = [], []
    for k, name in enumerate("ab"):
        target = np.asarray(raw[name])
        known = ~np.isnan(target)
        areas.append(sk.roc_auc_score(target[known], value[known, k]))
        nats.append(sk.log_loss(target[known], 1 / (1 + np.exp(-value[known, k]))))
        assert found[f"auc/{name}"] == pytest.approx(areas[-1])
        assert found[f"cross_entropy/{name}"] == pytest.approx(nats[-1], 1e-5)
    target = np.asarray(raw["c"])
    known = ~np.isnan(target)
    squared = sk.mean_squared_error(target[known], value[known, 2])
    assert found["auc"] == pytest.approx(np.mean(areas))
    assert found["cross_entropy"] == pytest.approx(np.mean(nats), 1e-5)
    assert found["mean_squared_error"] == found["mean_squared_error/c"]
    assert found["mean_squared_error"] == pytest.approx(squared, 1e-5)
    assert found["rmse/c"] == pytest.approx(np.sqrt(squared), 1e-5)
    assert found["target_loss"] == pytest.approx(sum(nats) + squared, 1e-5)
    assert set(TASK.figures()) <= found.keys()


def test_area_of_equal_scores_and_of_one_outcome():
    random = np.random.default_rng(1)
    for n in range(20):
        score, positive = random.integers(0, 4, 30), random.random(30) < 0.3
        positive[n], positive[n - 1] = True, False
        wanted = sk.roc_auc_score(positive, score)
        assert area_under_curve(score, positive) == pytest.approx(wanted)
    assert area_under_curve(np.zeros(6), np.arange(6) < 2) == 0.5
    assert np.isnan(area_under_curve(np.arange(3), np.zeros(3, bool)))
    assert np.isnan(area_under_curve(np.arange(3), np.ones(3, bool)))


def test_what_is_unknown_counts_nowhere(batch):
    """Neither in the value nor in the gradient, nor as nan."""
    predictions, raw = batch
    of = objective()

    def loss(value_BT):
        sums, weights = of.sums(replace(predictions, value_BT=value_BT), raw), of.weights(raw)
        return sum(sums[name] / weights[name] for name in weights)

    gradient = np.asarray(jax.grad(loss)(predictions.value_BT))
    known = np.stack([~np.isnan(np.asarray(raw[name])) for name in "abc"], axis=1)
    np.testing.assert_array_equal(gradient[~known], 0)
    assert np.isfinite(gradient).all() and (gradient[known] != 0).all()
    other = jnp.where(jnp.asarray(known), predictions.value_BT, 99.0)
    assert loss(other) == loss(predictions.value_BT)
    fills = jnp.arange(B, dtype=jnp.int32) > B - 4
    inputs = of.inputs({**raw, "row": jnp.where(fills, -1, raw["row"])})
    np.testing.assert_array_equal(inputs.valid_B, ~fills)  # without a target too
    # A target that no row of a batch knows, and one of a single outcome.
    none = {**raw, "b": jnp.full(B, jnp.nan), "a": jnp.where(jnp.isnan(raw["a"]), jnp.nan, 1.0)}
    found = figures(predictions, none)
    assert all(np.isfinite(x) for x in found.values())
    assert not {"auc/a", "auc/b", "auc", "cross_entropy/b"} & found.keys()


def test_sums_are_additive_over_rows(batch):
    predictions, raw = batch
    of = objective(replace(TASK, weighting="uncertainty"))
    s_T = jnp.asarray([0.5, -0.2, 0.3])
    predictions = replace(predictions, log_variance_T=s_T)
    whole = of.sums(predictions, raw)
    halves = []
    for rows in (slice(0, 22), slice(22, B)):
        part = replace(predictions, value_BT=predictions.value_BT[rows])
        halves.append(of.sums(part, {name: x[rows] for name, x in raw.items()}))
    added = add_sums(*halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), added, whole)
    assert all(np.issubdtype(whole[name].dtype, np.integer) for name in of.counters)


def test_losses_are_weighed_as_said(batch):
    """Fixed: sum w_k L_k. By uncertainty: sum exp(-s_k) L_k + s_k / 2, of real targets L_k / 2."""
    predictions, raw = batch
    plain = figures(*batch)
    each = [plain["cross_entropy/a"], plain["cross_entropy/b"], plain["mean_squared_error/c"]]
    fixed = figures(*batch, replace(TASK, weights=(2.0, 0.0, 0.5)))
    assert fixed["target_loss"] == pytest.approx(2 * each[0] + 0.5 * each[2], 1e-5)
    assert fixed["auc"] == plain["auc"]
    learned, s = replace(TASK, weighting="uncertainty"), np.array([0.5, -0.2, 0.3], np.float32)
    found = figures(replace(predictions, log_variance_T=jnp.asarray(s)), raw, learned)
    wanted = np.sum(np.exp(-s) * each * [1, 1, 0.5] + s / 2)
    assert found["target_loss"] == pytest.approx(wanted, 1e-5)
    assert found["weight/b"] == pytest.approx(np.exp(0.2), 1e-5)
    assert found["cross_entropy/a"] == plain["cross_entropy/a"]


def test_an_ensemble_joins_probabilities_and_means(batch):
    predictions, _ = batch
    joined = np.asarray(predictions.averaged(2).value_BT, np.float64)
    value = np.asarray(predictions.value_BT, np.float64).reshape(B // 2, 2, 3)
    prob = (1 / (1 + np.exp(-value[..., :2]))).mean(axis=1)
    np.testing.assert_allclose(joined[:, :2], np.log(prob / (1 - prob)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(joined[:, 2], value[..., 2].mean(axis=1), rtol=1e-5)


def test_columns_and_mistakes():
    columns = {"numbers": ArraySpec((3,), "float32"), "a": ArraySpec(), "b": ArraySpec()}
    assert TASK.reads(columns) == ("numbers", "a", "b", "c")
    assert TASK.reads({"tokens": ArraySpec((9,))})[:2] == ("categories", "numbers")
    io = TASK.io(columns)
    assert io.table == (0, 3) and io.gives == Targets(binary=("a", "b"), real=("c",))
    assert io.floats == 3 and not io.predicts_next and io.classes is None
    for wrong, path in (
        ({"real": ("a",)}, "real"),
        ({"weights": (1.0,)}, "weights"),
        ({"weights": (1.0, -1.0, 1.0)}, "weights"),
        ({"weights": (1.0,) * 3, "weighting": "uncertainty"}, "weights"),
        ({"weighting": "guess"}, "weighting"),
    ):
        assert {p.path for p in check(replace(TASK, **wrong))} == {path}
    assert TargetsOfRow.losses == ("target_loss",)
