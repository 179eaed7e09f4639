"""BASE layers: balanced in training, greedy in evaluation, sigmoid weights, gradient by these."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from moe_jax.routing.assignment.base_layers import BaseLayers
from moe_jax.routing.plan import make_plan
from tests.routing.given import identity_logits, inputs

T, E, D = 24, 4, 8


def batch(**kwargs):
    return inputs(jax.random.normal(jax.random.key(0), (T, D)), **kwargs)


def params():
    # All tokens lean to expert 0.
    kernel_DE = jax.random.normal(jax.random.key(1), (D, E)) / 2
    return {"kernel": kernel_DE, "bias": jnp.asarray([1.5, 0.0, 0.0, -1.0])}


def logits64(params, x):
    kernel_DE, bias_E = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    return np.asarray(x.x_TD, np.float64) @ kernel_DE + bias_E[None]


def best_assignment(logits_TE, places):
    _, column_T = linear_sum_assignment(np.repeat(logits_TE, places, axis=1), maximize=True)
    return column_T // places


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_training_takes_the_best_balanced_assignment():
    router, x = BaseLayers(bias=True), batch(train=True)
    a, sums = router.route(params(), {}, x)
    logits_TE = logits64(params(), x)
    want_T = best_assignment(logits_TE, T // E)
    assert np.array_equal(a.expert_R, want_T)
    assert np.array_equal(sums.wanted_E, [T // E] * E)
    weight_T = sigmoid(logits_TE[np.arange(T), want_T])
    np.testing.assert_allclose(a.weight_R, weight_T, rtol=1e-5)
    assert np.all(make_plan(a, T // E).kept_R)
    metrics = router.metrics({}, sums)
    moved = np.mean(want_T != np.argmax(logits_TE, axis=1))
    assert moved > 0.2
    np.testing.assert_allclose(metrics["moved"], moved, rtol=1e-6)
    assert metrics["greedy"] == metrics["unfinished"] == 0


def test_padding_leaves_its_places_to_nobody():
    """Of 24 tokens 14 are valid: four places an expert, as without the padding."""
    valid_T = (jnp.arange(T) % 5 != 0) & (jnp.arange(T) > 6)
    router, x = BaseLayers(bias=True), batch(train=True, valid_T=valid_T)
    a, sums = router.route(params(), {}, x)
    valid = np.asarray(valid_T)
    assert valid.sum() == 14
    want_T = best_assignment(logits64(params(), x)[valid], 4)
    assert np.array_equal(np.asarray(a.expert_R)[valid], want_T)
    assert np.all(np.asarray(a.expert_R)[~valid] == a.unused)
    assert int(np.sum(sums.wanted_E)) == 14


def test_evaluation_is_greedy_or_balanced():
    x = batch()
    greedy, sums = BaseLayers(bias=True).route(params(), {}, x)
    assert np.array_equal(greedy.expert_R, np.argmax(logits64(params(), x), axis=1))
    assert not sums.own and not BaseLayers().metrics({}, sums)
    balanced, sums = BaseLayers(bias=True, evaluation="balanced").route(params(), {}, x)
    trained, _ = BaseLayers(bias=True).route(params(), {}, batch(train=True))
    assert np.array_equal(balanced.expert_R, trained.expert_R)
    assert not np.array_equal(balanced.expert_R, greedy.expert_R)
    assert not sums.own


def test_the_gradient_flows_by_the_weight_alone():
    """d sum_t c_t sigmoid(x_t w_a(t)) / dW with a(t) fixed, in float64."""
    router, x = BaseLayers(bias=True), batch(train=True)
    c_T = jax.random.normal(jax.random.key(2), (T,))

    def value(kernel_DE):
        a, _ = router.route({**params(), "kernel": kernel_DE}, {}, x)
        return jnp.sum(c_T * a.weight_R)

    found_DE = jax.jit(jax.grad(value))(params()["kernel"])
    logits_TE = logits64(params(), x)
    one_hot_TE = np.eye(E)[best_assignment(logits_TE, T // E)]
    s_T = sigmoid(np.sum(logits_TE * one_hot_TE, axis=1))
    slope_TE = one_hot_TE * (np.asarray(c_T) * s_T * (1 - s_T))[:, None]
    want_DE = np.asarray(x.x_TD, np.float64).T @ slope_TE
    np.testing.assert_allclose(found_DE, want_DE, rtol=1e-4, atol=1e-5)


def test_the_cap_is_counted():
    """All tokens bid for expert 0; after one round all but 4 are placed greedily."""
    logits_TE = jnp.broadcast_to(jnp.asarray([[4.0, 3.0, 2.0, 1.0]]), (16, 4))
    router = BaseLayers(max_rounds=1)
    a, sums = identity_logits(router, logits_TE, train=True)
    assert np.array_equal(sums.wanted_E, [4] * 4)
    assert a.expert_R.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    metrics = router.metrics({}, sums)
    assert metrics == pytest.approx({"moved": 0.75, "unfinished": 1, "greedy": 0.75}, abs=1e-6)


def test_rules():
    assert not dict(BaseLayers().check())
    wrong = BaseLayers(evaluation="sampled", epsilon=1e-7, max_rounds=0)
    assert set(dict(wrong.check())) == {"evaluation", "epsilon", "max_rounds"}
    assert not BaseLayers().causal_choice and not BaseLayers().causal
