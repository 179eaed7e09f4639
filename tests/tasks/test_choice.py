"""A choice among what is available: figures of scikit-learn, and of a logit in float64."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from moe_jax.config.checks import check
from moe_jax.data.types import DataInfo
from moe_jax.nn.predictions import TargetValues
from moe_jax.routing.plan import add_sums
from moe_jax.tasks.choice import DiscreteChoice

B, AMONG = 60, ("train", "ship", "car")
TASK = DiscreteChoice(among=AMONG)


def objective():
    return TASK.start(0, DataInfo())


@pytest.fixture
def batch():
    """A third has no car; every seventh row is padding, every ninth says nothing."""
    random = np.random.default_rng(0)
    chosen = np.zeros((B, 3), np.float32)
    chosen[::3, 2] = np.nan
    for n in range(B):
        chosen[n, random.integers(2 if n % 3 == 0 else 3)] = 1
    chosen[::9] = np.where(np.isnan(chosen[::9]), np.nan, 0)
    chosen[::7] = np.nan
    raw = {name: jnp.asarray(chosen[:, k]) for k, name in enumerate(AMONG)}
    raw["numbers"] = jnp.zeros((B, 2))
    raw["row"] = jnp.arange(B, dtype=jnp.int32)
    value = jnp.asarray(random.normal(size=(B, 3)).astype(np.float32))
    return TargetValues(value_BT=value), raw, chosen


def test_metrics_are_scikit_learns(batch):
    predictions, raw, chosen = batch
    of = objective()
    found = of.metrics(of.sums(predictions, raw))
    value = np.where(np.isnan(chosen), -np.inf, np.asarray(predictions.value_BT, np.float64))
    known = np.nansum(chosen, axis=1) == 1
    p = np.exp(value[known] - np.log(np.exp(value[known]).sum(axis=1, keepdims=True)))
    right = np.nanargmax(chosen[known], axis=1)
    nats = sk.log_loss(right, p, labels=[0, 1, 2])
    assert found["cross_entropy"] == pytest.approx(nats, 1e-5)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(right, p.argmax(axis=1)))
    equal = np.log((~np.isnan(chosen[known])).sum(axis=1)).mean()
    assert found["rho_squared"] == pytest.approx(1 - nats / equal, 1e-4)
    for k, name in enumerate(AMONG):
        assert found[f"share/{name}"] == pytest.approx(np.mean(right == k))
        assert found[f"expected/{name}"] == pytest.approx(p[:, k].mean(), 1e-5)
    assert set(TASK.figures()) <= found.keys()


def test_what_is_not_available_has_no_part(batch):
    predictions, raw, chosen = batch
    of = objective()

    def loss(value_BT):
        sums, weights = of.sums(replace(predictions, value_BT=value_BT), raw), of.weights(raw)
        return sums["nats"] / weights["nats"]

    gradient = np.asarray(jax.grad(loss)(predictions.value_BT))
    known = np.nansum(chosen, axis=1) == 1
    there = ~np.isnan(chosen) & known[:, None]
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~there], 0)
    assert (gradient[there] != 0).all()
    other = jnp.where(jnp.asarray(there), predictions.value_BT, 50.0)
    assert loss(other) == loss(predictions.value_BT)
    assert int(of.weights(raw)["nats"]) == known.sum()
    fills = jnp.arange(B, dtype=jnp.int32) > B - 4
    inputs = of.inputs({**raw, "row": jnp.where(fills, -1, raw["row"])})
    np.testing.assert_array_equal(inputs.valid_B, ~fills)  # without a choice too
    losses = np.asarray(of.token_losses(predictions, raw))
    assert losses.shape == (B, 1) and (losses[~known] == 0).all() and (losses[known] > 0).all()


def test_sums_are_additive_over_rows(batch):
    predictions, raw, _ = batch
    of = objective()
    whole = of.sums(predictions, raw)
    halves = []
    for rows in (slice(0, 22), slice(22, B)):
        part = replace(predictions, value_BT=predictions.value_BT[rows])
        halves.append(of.sums(part, {name: x[rows] for name, x in raw.items()}))
    added = add_sums(*halves)
    for name, total in whole.items():
        np.testing.assert_allclose(added[name], total, rtol=1e-5)
    assert set(of.counters) <= whole.keys()
    none = {name: jnp.full(B, jnp.nan) for name in AMONG} | {"row": raw["row"]}
    found = of.metrics(of.sums(predictions, none))
    assert all(np.isfinite(x) for x in found.values()) and "rho_squared" not in found


def test_alternatives_are_named():
    assert check(TASK) == []
    assert [p.path for p in check(DiscreteChoice(among=("a",)))] == ["among"]
    assert [p.rule for p in check(DiscreteChoice(among=("a", "a")))] == [
        "names an alternative twice"
    ]
