"""Expert choice against float64 numpy, and its cap against a linear program of scipy."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from moe_jax.routing import ExpertChoice
from moe_jax.routing.balance import routing_metrics
from moe_jax.routing.expert_choice.expert_choice import ENTROPY, capped_scores
from moe_jax.routing.plan import make_plan, plan_traffic
from tests.routing.any_router import E, T, inputs, parameters


def scores(batch, params):
    logits = np.asarray(batch.x_TD, np.float64) @ np.asarray(params["kernel"], np.float64)
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def pairs(a):
    """{(token, expert): weight} of the used rows."""
    rows = zip(*(np.asarray(x) for x in (a.token_R, a.expert_R, a.weight_R)), strict=True)
    return {(t, e): w for t, e, w in rows if e < a.E}


@pytest.mark.parametrize(("factor", "padding"), [(2.0, 0), (1.0, 5), (0.7, 0), (6.0, 0), (2.0, 18)])
def test_against_numpy(factor, padding):
    """Every expert has its c best valid tokens, weighed by their probability."""
    router = ExpertChoice(capacity_factor=factor)
    params, batch = parameters(router), inputs(padding=padding)
    a, _ = router.route(params, {}, batch)
    S = scores(batch, params)
    c = min(math.ceil(T * factor / E), T)
    expected = {}
    for e in range(E):
        for t in np.argsort(-S[: T - padding, e], kind="stable")[:c]:
            expected[t, e] = S[t, e]
    found = pairs(a)
    assert found.keys() == expected.keys() and a.c == c
    np.testing.assert_allclose([found[k] for k in expected], list(expected.values()), rtol=1e-5)


def test_no_imbalance_and_no_drop():
    """Zhou et al., section 3.2: perfect balance by construction."""
    router = ExpertChoice()
    a, sums = router.route(parameters(router), {}, inputs())
    assert np.array_equal(sums.wanted_E, [8] * E)  # 2 * 24 / 6
    traffic = plan_traffic(make_plan(a, None), inputs().valid_T)
    metrics = routing_metrics(sums, traffic)
    assert metrics["max_violation"] == 0 and metrics["dropped_fraction"] == 0
    assert metrics["capacity_utilization"] == 1
    assert metrics["experts_per_token"] == 2 == router.experts_per_token(E, T)
    assert np.count_nonzero(traffic.served_H) > 2  # tokens have different numbers of experts


def test_ties_go_to_the_lower_token():
    router = ExpertChoice()
    params = jax.tree.map(jnp.zeros_like, parameters(router))
    a, _ = router.route(params, {}, inputs())
    assert np.array_equal(np.asarray(a.token_R).reshape(E, 8), np.tile(np.arange(8), (E, 1)))


def test_gradient_against_numpy():
    """d(sum of weights) / d logits = sum over a token's chosen e of S_e (delta - S)."""
    router = ExpertChoice()
    params, batch = parameters(router), inputs()
    total = jax.grad(lambda p: jnp.sum(router.route(p, {}, batch)[0].weight_R))(params)
    S = scores(batch, params)
    chosen = np.zeros((T, E))
    for t, e in pairs(router.route(params, {}, batch)[0]):
        chosen[t, e] = 1
    slope_TE = S * (chosen - np.sum(chosen * S, axis=1, keepdims=True))
    expected = np.asarray(batch.x_TD, np.float64).T @ slope_TE
    np.testing.assert_allclose(total["kernel"], expected, rtol=1e-4, atol=1e-5)


def program(S, c, most):
    """The best sum of scores with c tokens an expert and at most `most` experts a token."""
    T, E = S.shape
    experts, tokens = np.zeros((E, T, E)), np.zeros((T, T, E))
    for e in range(E):
        experts[e, :, e] = 1
    for t in range(T):
        tokens[t, t] = 1
    return -scipy.optimize.linprog(
        -S.ravel(),
        A_ub=tokens.reshape(T, -1),
        b_ub=np.full(T, most),
        A_eq=experts.reshape(E, -1),
        b_eq=np.full(E, c),
        bounds=(0, 1),
    ).fun


def hard(T, E, seed, scale):
    """Scores of which some experts are liked by all."""
    logits = np.random.default_rng(seed).normal(size=(T, E)) * scale + np.linspace(0, 1.5, E)
    S = np.exp(logits)
    return S / S.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("T", "E", "c", "most", "scale"),
    [(24, 6, 8, 2, 1), (24, 6, 8, 3, 3), (64, 16, 8, 3, 1), (128, 8, 32, 3, 3), (128, 8, 32, 4, 1)],
)
def test_cap_solves_the_linear_program(T, E, c, most, scale):
    S = hard(T, E, T + most, scale)
    slack = capped_scores(jnp.asarray(S, jnp.float32), jnp.ones((T, E), bool), c, most)
    A = np.exp(np.minimum(np.asarray(slack, np.float64) / ENTROPY, 0))
    assert np.all(A.sum(1) < most + 1e-2) and np.all(abs(A.sum(0) - c) < 0.1)
    best = program(S, c, most)
    # A real-valued A of entropy H loses at most ENTROPY * H.
    entropy = -np.sum(A * np.log(np.maximum(A, 1e-300)))
    assert best - np.sum(A * S) < ENTROPY * entropy + 0.05
    chosen = np.argsort(-np.asarray(slack), axis=0, kind="stable")[:c]
    assert np.sum(np.take_along_axis(S, chosen, axis=0)) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("padding", [0, 5, 20, T])
def test_cap_holds_for_every_token(padding):
    router = ExpertChoice(max_experts=2)
    params, batch = parameters(router), inputs(padding=padding)
    a, sums = router.route(params, {}, batch)
    found = pairs(a)
    assert np.all(np.bincount([t for t, _ in found] or [0], minlength=T) <= 2)
    lost = float(sums.own["over_cap"])
    assert len(found) + lost == min(8, T - padding) * E
    if not padding:
        assert lost <= 1
        free, _ = ExpertChoice().route(params, {}, batch)
        assert np.max(np.bincount([t for t, _ in pairs(free)])) > 2


def test_a_cap_of_all_experts_is_none():
    params = parameters(ExpertChoice())
    free, capped = (ExpertChoice(max_experts=m).route(params, {}, inputs())[0] for m in (None, E))
    assert pairs(free) == pairs(capped)


def test_checks():
    assert dict(ExpertChoice(max_experts=1).check()).keys() == {"max_experts"}
    assert dict(ExpertChoice(capacity_factor=0.0).check()).keys() == {"capacity_factor"}
    assert not dict(ExpertChoice(max_experts=2).check())
    assert not dataclasses.replace(ExpertChoice(), max_experts=3).causal
