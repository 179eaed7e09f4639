"""The transport plan against float64 Sinkhorn and closed forms, and the router that uses it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from moe_jax.routing.assignment.sinkhorn import Sinkhorn, transport_plan
from tests.routing.given import identity_logits, inputs


def sinkhorn64(logits_TE, iterations, temperature):
    """Multiplicative scaling of exp(logits / temperature) to rows of 1 and columns of T / E."""
    K_TE = np.exp(np.asarray(logits_TE, np.float64) / temperature)
    T, E = K_TE.shape
    v_E = np.ones(E)
    for _ in range(iterations):
        u_T = 1 / (K_TE @ v_E)
        v_E = (T / E) / (K_TE.T @ u_T)
    return K_TE * v_E[None] / (K_TE @ v_E)[:, None]


def logits(T=30, E=5, scale=1.0, seed=0):
    return scale * np.random.default_rng(seed).normal(size=(T, E)).astype(np.float32)


@pytest.mark.parametrize("iterations", [1, 2, 7, 200])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_plan_against_float64(iterations, temperature):
    logits_TE = logits()
    plan_TE = transport_plan(jnp.asarray(logits_TE), jnp.ones((30,), bool), iterations, temperature)
    want_TE = sinkhorn64(logits_TE, iterations, temperature)
    np.testing.assert_allclose(plan_TE, want_TE, rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(np.sum(plan_TE, axis=1), 1, rtol=1e-5)
    if iterations == 200:
        np.testing.assert_allclose(np.sum(plan_TE, axis=0), 30 / 5, rtol=1e-4)


def test_closed_form_of_two_tokens_and_two_experts():
    """[[p, 1 - p], [1 - p, p]] with p / (1 - p) = exp((a + d - b - c) / (2 temperature))."""
    a, b, c, d = 0.7, -0.2, 0.4, 0.1
    for temperature in (0.5, 1.0):
        plan_TE = transport_plan(
            jnp.asarray([[a, b], [c, d]], jnp.float32), jnp.ones((2,), bool), 100, temperature
        )
        p = 1 / (1 + np.exp(-(a + d - b - c) / (2 * temperature)))
        np.testing.assert_allclose(plan_TE, [[p, 1 - p], [1 - p, p]], rtol=1e-5)


def test_padding_and_closed_experts_are_left_out():
    logits_TE, valid_T = logits(), np.random.default_rng(1).random(30) < 0.5
    logits_TE[:, 2] = -np.inf
    want_TE = sinkhorn64(np.delete(logits_TE, 2, axis=1)[valid_T], 50, 1.0)
    for junk in (0.0, 1e9, -np.inf, np.nan):
        padded_TE = np.where(valid_T[:, None], logits_TE, np.float32(junk))
        plan_TE = np.asarray(transport_plan(jnp.asarray(padded_TE), jnp.asarray(valid_T), 50))
        assert np.all(plan_TE[~valid_T] == 0) and np.all(plan_TE[:, 2] == 0)
        np.testing.assert_allclose(np.delete(plan_TE, 2, axis=1)[valid_T], want_TE, rtol=2e-4)
    nothing = (np.zeros(30, bool), np.ones(30, bool))
    for valid_T, logits_TE in zip(nothing, (logits(), np.full((30, 5), -np.inf)), strict=True):
        plan_TE = transport_plan(jnp.asarray(logits_TE, jnp.float32), jnp.asarray(valid_T), 5)
        assert np.all(np.asarray(plan_TE) == 0)


def test_pairs_that_are_closed():
    logits_TE = logits()
    closed_TE = np.random.default_rng(2).random((30, 5)) < 0.3
    masked_TE = np.where(closed_TE, np.float32(-np.inf), logits_TE)
    plan_TE = np.asarray(transport_plan(jnp.asarray(masked_TE), jnp.ones((30,), bool), 300))
    assert np.all(plan_TE[closed_TE] == 0)
    np.testing.assert_allclose(plan_TE, sinkhorn64(masked_TE, 300, 1.0), rtol=2e-4)
    np.testing.assert_allclose(plan_TE.sum(axis=0), 6, rtol=1e-4)


def test_low_temperature_nears_the_best_assignment():
    """The plan's value nears the best balanced assignment's, and its largest entries are it."""
    T, E = 24, 4
    logits_TE = logits(T, E, seed=4)
    token, column = linear_sum_assignment(
        np.repeat(logits_TE.astype(np.float64), T // E, axis=1), maximize=True
    )
    best = logits_TE.astype(np.float64)[token, column // (T // E)].sum()
    values = []
    for temperature in (2.0, 0.5, 0.1, 0.01):
        plan_TE = np.asarray(
            transport_plan(jnp.asarray(logits_TE), jnp.ones((T,), bool), 5000, temperature)
        )
        values.append(np.sum(plan_TE * logits_TE))
        # Entropy is at most log E a token: 0 <= best - value <= temperature * T * log(E).
        assert -1e-3 * T <= best - values[-1] <= temperature * T * np.log(E)
    assert values == sorted(values)
    assert np.array_equal(plan_TE.argmax(axis=1), column // (T // E))


def test_extreme_logits_stay_finite():
    for scale in (1e4, 1e30):
        plan_TE = transport_plan(jnp.asarray(logits(scale=scale)), jnp.ones((30,), bool), 20, 1e-2)
        assert np.all(np.isfinite(plan_TE))
        np.testing.assert_allclose(np.sum(plan_TE, axis=1), 1, rtol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_choices_by_the_plan_and_weights_without_it(k, score):
    logits_TE = logits() + np.asarray([[1.5, 0.5, 0, 0, -1]], np.float32)
    router = Sinkhorn(k=k, score=score, temperature=0.5, iterations=500)
    a, sums = identity_logits(router, jnp.asarray(logits_TE), train=True)
    plan_TE = sinkhorn64(logits_TE, 500, 0.5)
    want_TK = np.argsort(-plan_TE, axis=1)[:, :k]
    assert np.array_equal(a.expert_R, want_TK.reshape(-1))
    upcast_TE = logits_TE.astype(np.float64)
    if score == "sigmoid":
        score_TE = sigmoid(upcast_TE)
    else:
        score_TE = np.exp(upcast_TE) / np.exp(upcast_TE).sum(axis=1, keepdims=True)
    weight_TK = np.take_along_axis(score_TE, want_TK, axis=1)
    np.testing.assert_allclose(a.weight_R, weight_TK.reshape(-1), rtol=1e-5)
    moved = np.mean(want_TK[:, 0] != np.argmax(logits_TE, axis=1))
    metrics = router.metrics({}, sums)
    assert moved > 0.1
    np.testing.assert_allclose(metrics["moved"], moved, rtol=1e-6)
    assert 0 <= metrics["plan_imbalance"] <= 1e-4
    few = identity_logits(Sinkhorn(iterations=1), jnp.asarray(logits_TE), train=True)[1]
    error_E = np.sum(sinkhorn64(logits_TE, 1, 1.0), axis=0) * 5 / 30 - 1
    np.testing.assert_allclose(router.metrics({}, few)["plan_imbalance"], max(error_E), rtol=1e-3)
    # Greedy choices are far from balanced, those by the plan near.
    greedy = np.bincount(np.argmax(logits_TE, axis=1), minlength=5)
    if k == 1:
        assert int(np.max(sums.wanted_E)) < 0.7 * greedy.max()


def test_evaluation_is_greedy_or_balanced():
    logits_TE = jnp.asarray(logits() + np.asarray([[1.5, 0.5, 0, 0, -1]], np.float32))
    greedy, sums = identity_logits(Sinkhorn(k=2), logits_TE)
    want_TK = np.argsort(-np.asarray(logits_TE), axis=1)[:, :2]
    assert np.array_equal(greedy.expert_R, want_TK.reshape(-1)) and not sums.own
    balanced, sums = identity_logits(Sinkhorn(k=2, evaluation="balanced"), logits_TE)
    trained, _ = identity_logits(Sinkhorn(k=2), logits_TE, train=True)
    assert np.array_equal(balanced.expert_R, trained.expert_R) and not sums.own
    assert not np.array_equal(balanced.expert_R, greedy.expert_R)


def test_where_the_plan_does_not_tell_the_logits_do():
    """The plan of one token, and of equal tokens, is uniform but for rounding errors."""
    logits_TE = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    balanced = Sinkhorn(k=2, evaluation="balanced", temperature=0.7)
    for t in range(20):
        want = np.argsort(-logits_TE[t])[:2]
        for tokens in (1, 7):
            a, _ = identity_logits(balanced, jnp.asarray(np.tile(logits_TE[t], (tokens, 1))))
            assert np.array_equal(a.expert_R, np.tile(want, tokens))


def test_the_gradient_flows_by_the_score_alone():
    x = inputs(jax.random.normal(jax.random.key(0), (24, 8)), train=True)
    kernel_DE = jax.random.normal(jax.random.key(1), (8, 4))
    c_T = jax.random.normal(jax.random.key(2), (24,))

    def value(kernel_DE):
        a, sums = Sinkhorn(iterations=3).route({"kernel": kernel_DE}, {}, x)
        of_the_plan = jnp.sum(sums.own["plan_E"] * jnp.arange(4.0))
        return jnp.sum(c_T * a.weight_R) + of_the_plan, a.expert_R

    found_DE, expert_T = jax.jit(jax.grad(value, has_aux=True))(kernel_DE)
    logits_TE = np.asarray(x.x_TD, np.float64) @ np.asarray(kernel_DE, np.float64)
    assert not np.array_equal(expert_T, np.argmax(logits_TE, axis=1))
    s_T = sigmoid(logits_TE[np.arange(24), np.asarray(expert_T)])
    slope_TE = np.eye(4)[np.asarray(expert_T)] * (np.asarray(c_T) * s_T * (1 - s_T))[:, None]
    want_DE = np.asarray(x.x_TD, np.float64).T @ slope_TE
    np.testing.assert_allclose(found_DE, want_DE, rtol=1e-4, atol=1e-5)


def test_a_scheduled_temperature():
    """As a runtime scalar it gives what the constant does."""
    logits_TE, valid_T = jnp.asarray(logits()), jnp.ones((30,), bool)
    traced = jax.jit(lambda t: transport_plan(logits_TE, valid_T, 20, t))(jnp.float32(0.5))
    np.testing.assert_allclose(traced, transport_plan(logits_TE, valid_T, 20, 0.5), rtol=1e-6)


def test_rules():
    assert not dict(Sinkhorn().check())
    wrong = Sinkhorn(k=0, score="cosine", temperature=0.0, iterations=0, evaluation="soft")
    assert set(dict(wrong.check())) == {"k", "score", "temperature", "iterations", "evaluation"}
    assert not Sinkhorn().causal_choice
