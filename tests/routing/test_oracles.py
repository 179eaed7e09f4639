"""Routers, losses and capacities against figures from outside: papers and other codebases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.routing import GShard, Mixtral, NoisyTopK, Switch, VMoE
from moe_jax.routing.balance import (
    importance_loss,
    load_balance_loss,
    max_violation,
    router_z_loss,
    squared_cv,
)
from moe_jax.routing.capacity import ROUNDINGS, expert_capacity
from moe_jax.routing.choice import choose, make_sums, scatter_gates
from moe_jax.routing.plan import make_plan
from moe_jax.routing.token_choice.noisy_top_k import probability_of_choice
from tests.routing.given import identity_logits, inputs

GATES = [[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.8, 0.2, 0.0]]


def sums_of(gates, k):
    gates_TE = jnp.asarray(gates, jnp.float32)
    weight_TK, expert_TK = jax.lax.top_k(gates_TE, k)
    T, E = gates_TE.shape
    a = choose(weight_TK, expert_TK, inputs(jnp.zeros((T, 1))), E)
    valid_T = jnp.ones((T,), bool)
    return make_sums(a, jnp.log(gates_TE + 1e-30), gates_TE, gates_TE, valid_T)


def test_gshard_balance_loss_counts_first_choices():
    assert load_balance_loss(sums_of(GATES, 2), count="first") == pytest.approx(1.0875)


def test_importance_loss_of_both_variances():
    sums = sums_of(GATES, 2)
    assert importance_loss(sums) == pytest.approx(0.03875, abs=1e-6)
    assert importance_loss(sums, variance="unbiased") == pytest.approx(0.058125, abs=1e-6)


@pytest.mark.parametrize(("E", "value"), [(4, 1.92181), (8, 4.32408)])
def test_z_loss_of_zero_logits(E, value):
    _, sums = identity_logits(Mixtral(k=2), jnp.zeros((5, E)))
    assert router_z_loss(sums) == pytest.approx(value, abs=1e-5)


def test_capacity_of_each_codebase():
    found = {name: expert_capacity(10, 4, 2.0, 1.25, name) for name in ROUNDINGS}
    published = {"ceil": 7, "floor": 6, "multiple_of_4": 8, "without_k": 4}
    published |= {"k_times_floor": 6, "floor_of_ceil": 6}  # Tutel, MaxText
    assert {name: found[name] for name in published} == published
    assert 10 / 4 * 1.25 == 3.125  # Switch eq. 3 before rounding: k = 1
    assert expert_capacity(10, 4, 1.0, 1.25, "ceil") == 4


def test_capacity_bounds():
    assert expert_capacity(10, 4, 2.0, None) is None
    assert expert_capacity(10, 1, 1.0, 9.0) == 10
    assert expert_capacity(3, 64, 1.0, 0.1, "floor", minimum=2) == 2
    assert expert_capacity(10, 10, 1.0, 1.1, "ceil") == 2  # 1.1, not 1.1000000000000001 -> 2
    assert expert_capacity(100, 10, 1.0, 1.1, "ceil") == 11


@pytest.mark.parametrize("k", [1, 2, 3])
def test_balanced_router_by_normalization(k):
    """Equal probabilities and equal counts: 1, k or 1/k."""
    T, E = 12, 6
    expert_TK = (np.arange(T)[:, None] + np.arange(k)[None]) % E
    weight_TK = jnp.full((T, k), 1 / E)
    a = choose(weight_TK, jnp.asarray(expert_TK, jnp.int32), inputs(jnp.zeros((T, 1))), E)
    prob_TE = jnp.full((T, E), 1 / E)
    sums = make_sums(a, prob_TE, prob_TE, prob_TE, jnp.ones((T,), bool))
    expected = {"one": 1, "hugging_face": k, "flaxformer": k, "maxtext": k, "levanter": 1 / k}
    for name, value in expected.items():
        assert load_balance_loss(sums, normalization=name) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("order", "published"),
    [  # (expert, place) of the first choices of tokens 0, 1, 2, then of the second choices
        ("choice_major", [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2), (0, 2)]),
        ("batch_priority", [(0, 1), (0, 0), (2, 0), (2, 2), (2, 1), (0, 2)]),
    ],
)
def test_v_moe_position_and_batch_priority(order, published):
    """The example of V-MoE's code: k=2, C=2, places 2 and up are dropped."""
    gates_TE = jnp.asarray([[0.4, 0, 0.2], [0.5, 0.1, 0.4], [0.3, 0.2, 0.6]], jnp.float32)
    weight_TK, expert_TK = jax.lax.top_k(gates_TE, 2)
    a = choose(weight_TK, expert_TK, inputs(jnp.zeros((3, 1))), 3, order)
    plan = make_plan(a, 2)
    found = list(zip(np.asarray(a.expert_R).tolist(), plan.slot_R.tolist(), strict=True))
    assert found[0::2] + found[1::2] == published
    assert plan.kept_R.tolist() == [slot < 2 for _, slot in found]


def test_batch_priority_never_serves_a_second_choice_before_a_first():
    """C=1, a sure token and an unsure one that want each other's experts second: only among equal
    ranks does the weight count."""
    expert_TK = jnp.asarray([[0, 1], [1, 0]], jnp.int32)
    weight_TK = jnp.asarray([[0.99, 0.98], [0.01, 0.005]])
    a = choose(weight_TK, expert_TK, inputs(jnp.zeros((2, 1))), 2, "batch_priority")
    assert make_plan(a, 1).kept_R.tolist() == [True, False, True, False]


def test_drop_order_of_two_tokens():
    """C=1, choices [[0, 1], [1, 0]]: choice-major keeps both firsts, token-major all of token 0."""
    expert_TK = jnp.asarray([[0, 1], [1, 0]], jnp.int32)
    weight_TK = jnp.asarray([[0.6, 0.4], [0.6, 0.4]])
    kept = {}
    for order in ("choice_major", "token_major"):
        a = choose(weight_TK, expert_TK, inputs(jnp.zeros((2, 1))), 2, order)
        kept[order] = np.asarray(make_plan(a, 1).kept_R).tolist()
    assert kept["choice_major"] == [True, False, True, False]
    assert kept["token_major"] == [True, True, False, False]


def test_max_violation_and_integer_counts():
    assert max_violation(jnp.asarray([5, 4, 3, 4])) == pytest.approx(0.25)
    # 64 shards with 608 to 676 tokens: exact only in integers (bfloat16 cannot hold 257).
    shards = np.random.default_rng(0).integers(608, 677, 64)
    total = jnp.sum(jnp.asarray(shards, jnp.int32), dtype=jnp.int32)
    assert int(total) == int(shards.sum())
    _, sums = identity_logits(Mixtral(k=2), jnp.zeros((300, 4)))
    assert sums.wanted_E.dtype == jnp.int32
    assert int(sums.wanted_E[0]) == 300


def test_switch_router_keeps_its_gradient_and_mixtral_with_one_does_not():
    logits_TE = jax.random.normal(jax.random.key(0), (6, 4))

    def weight(logits_TE, router):
        return jnp.sum(identity_logits(router, logits_TE)[0].weight_R)

    switch = jax.grad(weight)(logits_TE, Switch())
    mixtral = jax.grad(weight)(logits_TE, Mixtral(k=1))
    assert np.abs(switch).max() > 1e-2
    assert np.abs(mixtral).max() == 0
    assert list(Mixtral(k=1).warn())


def test_mixtral_is_renormalised_softmax():
    logits_TE = np.random.default_rng(0).normal(size=(7, 5))
    a, _ = identity_logits(Mixtral(k=2), jnp.asarray(logits_TE, jnp.float32))
    prob = np.exp(logits_TE) / np.exp(logits_TE).sum(1, keepdims=True)
    order = np.argsort(-logits_TE, axis=1)[:, :2]
    best = np.take_along_axis(prob, order, 1)
    np.testing.assert_array_equal(np.asarray(a.expert_R).reshape(7, 2), order)
    np.testing.assert_allclose(
        np.asarray(a.weight_R).reshape(7, 2), best / best.sum(1, keepdims=True), rtol=1e-6
    )


def test_gshard_second_expert_at_random_has_probability_twice_its_weight():
    """2 g2 < 1 of the time for g2 = 0.2: wanted with probability 0.4; always in evaluation."""
    T = 4000
    logits_TE = jnp.tile(jnp.log(jnp.asarray([[0.8, 0.2, 1e-6]])), (T, 1))
    a, _ = identity_logits(GShard(), logits_TE, key=jax.random.key(3), train=True)
    second = np.asarray(a.expert_R).reshape(T, 2)[:, 1]
    share = np.mean(second == 1)
    assert abs(share - 0.4) < 4 * np.sqrt(0.4 * 0.6 / T)
    assert set(np.unique(second)) == {1, a.unused}
    for router, options in ((GShard(), {}), (GShard(second_policy="all"), {"train": True})):
        a, _ = identity_logits(router, logits_TE, key=jax.random.key(3), **options)
        assert np.all(np.asarray(a.expert_R).reshape(T, 2)[:, 1] == 1)


def test_noisy_top_k_load_is_the_probability_under_fresh_noise():
    """P(x, i) of 1701.06538 eq. 8-9 against redrawing expert i's noise 20000 times."""
    rng = np.random.default_rng(0)
    E, k, draws = 5, 2, 20000
    clean, std = rng.normal(size=E), 0.3 + rng.random(E)
    noisy = clean + std * rng.normal(size=E)
    found = probability_of_choice(
        jnp.asarray(clean[None], jnp.float32),
        jnp.asarray(noisy[None], jnp.float32),
        jnp.asarray(std[None], jnp.float32),
        k,
    )[0]
    for i in range(E):
        others = np.delete(noisy, i)
        threshold = np.sort(others)[-k]
        share = np.mean(clean[i] + std[i] * rng.normal(size=draws) > threshold)
        assert abs(float(found[i]) - share) < 4 * np.sqrt(0.25 / draws)
    assert np.all(probability_of_choice(*[jnp.ones((1, E))] * 3, E) == 1)


def test_noise_only_in_training_and_by_key():
    x_TD = jax.random.normal(jax.random.key(0), (16, 6))
    for router in (NoisyTopK(k=2, noise="fixed", noise_std=50.0), VMoE(k=2, noise_std=50.0)):
        params = {"kernel": jax.random.normal(jax.random.key(1), (6, 8))}

        def experts(seed, train, router=router, params=params):
            found, _ = router.route(params, {}, inputs(x_TD, jax.random.key(seed), train))
            return np.asarray(found.expert_R)

        assert np.array_equal(experts(1, False), experts(2, False))
        assert np.array_equal(experts(1, True), experts(1, True))
        assert not np.array_equal(experts(1, True), experts(2, True))


def test_v_moe_load_against_scipy():
    from scipy.stats import norm

    rng = np.random.default_rng(1)
    clean = rng.normal(size=(6, 5))
    router, key = VMoE(k=2, noise_std=1.5), jax.random.key(4)
    _, sums = identity_logits(router, jnp.asarray(clean, jnp.float32), key=key, train=True)
    noise = np.asarray(jax.random.normal(jax.random.fold_in(key, 1), clean.shape), np.float64)
    std = 1.5 / 5
    threshold = np.sort(clean + std * noise, axis=1)[:, -2:-1]
    expected = 1 - norm.cdf((threshold - clean) / std)
    np.testing.assert_allclose(np.asarray(sums.load_E), expected.sum(0), rtol=1e-4)


def test_squared_cv_against_numpy():
    x = np.random.default_rng(0).random(9)
    assert squared_cv(jnp.asarray(x)) == pytest.approx((x.std() / x.mean()) ** 2, rel=1e-5)
    unbiased = (x.std(ddof=1) / x.mean()) ** 2
    assert squared_cv(jnp.asarray(x), "unbiased") == pytest.approx(unbiased, rel=1e-5)
    assert squared_cv(jnp.zeros(4)) == 0


def test_sparse_gates_sum_to_the_weights():
    weight_TK = jnp.asarray([[0.7, 0.3], [0.6, 0.4]])
    expert_TK = jnp.asarray([[2, 0], [1, 3]], jnp.int32)
    gate_TE = scatter_gates(weight_TK, expert_TK, 4)
    expected = [[0.3, 0, 0.7, 0], [0, 0.6, 0, 0.4]]
    np.testing.assert_allclose(np.asarray(gate_TE), expected, rtol=1e-6)
