"""MoE++: choices, sums, losses and the undispatched experts against float64 numpy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

from moe_jax.routing.plan import make_plan, plan_traffic, reduce_sums
from moe_jax.routing.token_choice.moe_plus_plus import MoEPlusPlus
from tests.routing.given import inputs

T, D, E = 40, 5, 6
ADAMOE = MoEPlusPlus(zero=4, copy=0, constant=0, k=3, renormalize=True)
ROUTERS = [MoEPlusPlus(), MoEPlusPlus(zero=2, copy=2, constant=1, k=3), ADAMOE]


def parameters(router, seed=0):
    rng = np.random.default_rng(seed)
    specs = router.params(D, E)
    return {name: rng.normal(size=spec.shape).astype(np.float32) for name, spec in specs.items()}


def tokens(seed=1):
    x_TD = np.random.default_rng(seed).normal(size=(T, D)).astype(np.float32)
    return x_TD, np.arange(T) < 33


def route(router, params, x_TD, valid_T, train=True):
    given = inputs(jnp.asarray(x_TD), valid_T=valid_T, train=train)
    return router.route(jax.tree.map(jnp.asarray, params), {}, given), given


def by_hand(router, params, x_TD):
    """Probabilities over E + Z, the chosen ids, best first, and their weights, in float64."""
    q_TN = scipy.special.softmax(x_TD.astype(np.float64) @ params["kernel"], axis=1)
    chosen_TK = np.argsort(-q_TN, axis=1, kind="stable")[:, : router.k]
    weight_TK = np.take_along_axis(q_TN, chosen_TK, axis=1)
    if router.renormalize:
        weight_TK = np.where((chosen_TK >= E) & (chosen_TK < E + router.zero), 0, weight_TK)
        weight_TK = weight_TK / np.maximum(weight_TK.sum(1, keepdims=True), 1e-300)
    return q_TN, chosen_TK, weight_TK


def home_by_hand(router, params, x_TD, chosen_TK, weight_TK):
    """Expert by expert; float64."""
    y_TD = np.zeros((len(x_TD), D))
    for t, x_D in enumerate(x_TD.astype(np.float64)):
        for expert, weight in zip(chosen_TK[t], weight_TK[t], strict=True):
            z = expert - E
            if router.zero <= z < router.zero + router.copy:
                y_TD[t] += weight * x_D
            elif z >= router.zero + router.copy:
                j = z - router.zero - router.copy
                a1, a2 = scipy.special.softmax(x_D @ params["mix"][j].astype(np.float64))
                y_TD[t] += weight * (a1 * x_D + a2 * params["constant"][j])
    return y_TD


@pytest.mark.parametrize("router", ROUTERS)
def test_choices_weights_and_sums(router):
    params, (x_TD, valid_T) = parameters(router), tokens()
    (a, sums), _ = route(router, params, x_TD, valid_T)
    q_TN, chosen_TK, weight_TK = by_hand(router, params, x_TD)
    assert (a.E, a.Z, a.unused) == (E, router.Z, E + router.Z)
    found_TK = np.asarray(a.expert_R).reshape(T, -1)
    np.testing.assert_array_equal(found_TK[valid_T], chosen_TK[valid_T])
    assert np.all(found_TK[~valid_T] == a.unused)
    np.testing.assert_allclose(
        np.asarray(a.weight_R).reshape(T, -1)[valid_T], weight_TK[valid_T], rtol=1e-5
    )
    chosen, q_TN = chosen_TK[valid_T], q_TN[valid_T]
    assert np.any(np.all(chosen >= E, axis=1))  # some tokens stay wholly undispatched
    counts_N = np.bincount(chosen.ravel(), minlength=E + router.Z)
    np.testing.assert_array_equal(sums.wanted_E, counts_N[:E])
    np.testing.assert_array_equal(sums.own["wanted_N"], counts_N)
    np.testing.assert_array_equal(
        sums.first_E, np.bincount(chosen[:, 0], minlength=E + router.Z)[:E]
    )
    np.testing.assert_allclose(sums.own["prob_N"], q_TN.sum(0), rtol=1e-5)
    # Given that the expert is one with matrices.
    given_TE = q_TN[:, :E] / q_TN[:, :E].sum(1, keepdims=True)
    np.testing.assert_allclose(sums.prob_E, given_TE.sum(0), rtol=1e-5)
    logits_TN = x_TD[valid_T].astype(np.float64) @ params["kernel"]
    z = np.square(scipy.special.logsumexp(logits_TN, axis=1)).sum()
    np.testing.assert_allclose(sums.z, z, rtol=1e-5)
    np.testing.assert_allclose(sums.largest_logit, np.abs(logits_TN).max(), rtol=1e-5)
    np.testing.assert_allclose(sums.entropy, scipy.stats.entropy(q_TN, axis=1).sum(), rtol=1e-5)
    for train in (True, False):
        (_, sums), _ = route(router, params, x_TD, valid_T, train=train)
        undispatched = router.metrics({}, sums)["undispatched_fraction"]
        np.testing.assert_allclose(undispatched, (chosen >= E).mean(), rtol=1e-6)


@pytest.mark.parametrize("router", ROUTERS)
def test_experts_at_home(router):
    params, (x_TD, valid_T) = parameters(router), tokens()
    _, chosen_TK, weight_TK = by_hand(router, params, x_TD)
    expected_TD = home_by_hand(router, params, x_TD, chosen_TK, weight_TK)
    x_TD[~valid_T] = np.inf  # padding, whatever stands in it
    (a, _), given = route(router, params, x_TD, valid_T)
    y_TD = router.undispatched(jax.tree.map(jnp.asarray, params), given, a)
    assert y_TD.dtype == jnp.float32
    np.testing.assert_allclose(y_TD[valid_T], expected_TD[valid_T], rtol=1e-4, atol=1e-5)
    assert np.all(np.asarray(y_TD)[~valid_T] == 0)
    assert router is ADAMOE or np.abs(expected_TD[valid_T]).max() > 0.1


def test_adamoe_skips_a_zero_expert_but_spends_a_choice():
    """Null experts take choices, not weight: those of the others add up to 1."""
    params, (x_TD, valid_T) = parameters(ADAMOE), tokens()
    (a, _), _ = route(ADAMOE, params, x_TD, valid_T)
    expert_TK = np.asarray(a.expert_R).reshape(T, 3)[valid_T]
    weight_TK = np.asarray(a.weight_R).reshape(T, 3)[valid_T]
    assert np.all(weight_TK[expert_TK >= E] == 0)
    matrices_T = (expert_TK < E).sum(1)
    assert set(matrices_T) == {0, 1, 2, 3}
    np.testing.assert_allclose(weight_TK.sum(1), matrices_T > 0, rtol=1e-6)


@pytest.mark.parametrize("router", ROUTERS[:2])
def test_gradients_of_the_experts_at_home(router):
    """Of x, v, W_c and the router's matrix, against differences of the float64 layer."""
    params, x_TD = parameters(router), tokens()[0]
    _, chosen_TK, _ = by_hand(router, params, x_TD)
    weigh_TD = np.random.default_rng(3).normal(size=(T, D))

    def loss(arrays):
        arrays, x_TD = dict(arrays), arrays["x"]
        (a, _), given = route(router, arrays, x_TD, None)
        return jnp.sum(router.undispatched(arrays, given, a) * jnp.asarray(weigh_TD, jnp.float32))

    def loss_by_hand(arrays):
        _, chosen, weight_TK = by_hand(router, arrays, arrays["x"])
        assert np.array_equal(chosen, chosen_TK)  # no choice flipped
        return (home_by_hand(router, arrays, arrays["x"], chosen, weight_TK) * weigh_TD).sum()

    arrays = {**params, "x": x_TD}
    slopes = jax.grad(loss)(jax.tree.map(jnp.asarray, arrays))
    for seed, name in enumerate(arrays):
        direction = np.random.default_rng(seed).normal(size=arrays[name].shape)
        step = 1e-6
        up, down = (
            loss_by_hand(
                {
                    **{n: v.astype(np.float64) for n, v in arrays.items()},
                    name: arrays[name].astype(np.float64) + sign * step * direction,
                }
            )
            for sign in (1, -1)
        )
        found = (np.asarray(slopes[name], np.float64) * direction).sum()
        np.testing.assert_allclose(found, (up - down) / (2 * step), rtol=1e-4, atol=1e-4)


def test_balance_loss_is_equation_7():
    router = MoEPlusPlus(tau=0.4, balance_coefficient=0.5)
    params, (x_TD, valid_T) = parameters(router), tokens()
    (_, sums), _ = route(router, params, x_TD, valid_T)
    q_TN, chosen_TK, _ = by_hand(router, params, x_TD)
    q_TN, chosen_TK, n = q_TN[valid_T], chosen_TK[valid_T], valid_T.sum()
    eta_N = np.array([1.0] * E + [0.4] * 4)
    f_N = np.bincount(chosen_TK.ravel(), minlength=E + 4) / n
    np.testing.assert_allclose(
        router.losses(sums)["balance"], 0.5 * (eta_N * f_N * q_TN.mean(0)).sum(), rtol=1e-5
    )
    halves = [
        route(router, params, x_TD[part], valid_T[part])[0][1]
        for part in (slice(0, 20), slice(20, 40))
    ]
    added = reduce_sums(jax.tree.map(lambda *leaves: jnp.stack(leaves), *halves))
    np.testing.assert_allclose(
        router.losses(added)["balance"], router.losses(sums)["balance"], rtol=1e-6
    )

    # The gradient flows through P alone.
    def loss(kernel):
        (_, sums), _ = route(router, {**params, "kernel": kernel}, x_TD, valid_T)
        return router.losses(sums)["balance"]

    pull_TN = 0.5 / n * q_TN * (eta_N * f_N - (q_TN * eta_N * f_N).sum(1, keepdims=True))
    np.testing.assert_allclose(
        jax.grad(loss)(jnp.asarray(params["kernel"])),
        x_TD[valid_T].astype(np.float64).T @ pull_TN,
        rtol=1e-4,
        atol=1e-6,
    )


def test_share_of_matrix_experts_as_published():
    """Table 1 of 2410.07348: tau N / (tau N + Z) of the work of a layer without cheap experts."""
    router = MoEPlusPlus(tau=0.75)
    assert router.experts_per_token(8, 64) == pytest.approx(2 * 0.6)
    assert router.experts_per_token(16, 64) == pytest.approx(2 * 0.75)
    assert dataclasses.replace(router, constant=6).experts_per_token(32, 64) == pytest.approx(1.5)
    assert MoEPlusPlus(zero=0, copy=0, constant=0).experts_per_token(8, 64) == 2


@pytest.mark.parametrize("tau", [0.25, 0.75])
def test_the_balance_loss_alone_leads_to_that_share(tau):
    router = MoEPlusPlus(tau=tau, balance_coefficient=1.0)
    tokens, width, experts = 1024, 16, 8
    params = {"kernel": jax.random.normal(jax.random.key(0), (width, experts + 4)) * 0.5}
    optimizer = optax.adam(0.003)

    def step(carry, key):
        params, opt_state = carry
        given = inputs(jax.random.normal(key, (tokens, width)) + 0.5, train=True)

        def loss(params):
            _, sums = router.route(params, {}, given)
            return router.losses(sums)["balance"], sums

        gradient, sums = jax.grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradient, opt_state)
        share = jnp.sum(sums.wanted_E).astype(jnp.float32) / tokens
        return (optax.apply_updates(params, updates), opt_state), share

    keys = jax.random.split(jax.random.key(1), 400)
    share = np.asarray(
        jax.jit(lambda c: jax.lax.scan(step, c, keys)[1])((params, optimizer.init(params)))
    )
    assert share[-100:].mean() == pytest.approx(router.experts_per_token(experts, tokens), rel=0.06)


def test_a_dropped_token_with_an_expert_at_home_is_not_lost():
    """Two tokens want matrix expert 0, which has one place; one also has the copy expert."""
    router = MoEPlusPlus(zero=0, copy=1, constant=0)
    params = {"kernel": np.eye(3, dtype=np.float32)}  # experts 0, 1 and copy
    logits_TD = np.array([[3, 1, 2], [3, 1, 2], [3, 2, 1]], np.float32)
    (a, _), given = route(router, params, logits_TD, None)
    assert np.asarray(a.expert_R).tolist() == [0, 2, 0, 2, 0, 1]
    plan = make_plan(a, 1)
    traffic = plan_traffic(plan, given.valid_T)
    assert int(traffic.dropped) == 2 and int(traffic.dropped_tokens) == 0
    # The third token is served by its second choice; without it, it would be lost.
    (a, _), given = route(dataclasses.replace(router, k=1), params, logits_TD, None)
    assert int(plan_traffic(make_plan(a, 1), given.valid_T).dropped_tokens) == 2
    # Undispatched experts take no place: a capacity of one and all three tokens copied.
    (a, _), given = route(dataclasses.replace(router, k=1), params, logits_TD[:, [1, 2, 0]], None)
    plan = make_plan(a, 1)
    assert np.all(np.asarray(a.expert_R) == 2) and not np.any(plan.kept_R)
    assert int(plan_traffic(plan, given.valid_T).dropped_tokens) == 0
