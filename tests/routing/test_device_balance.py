"""The device-level balance loss of DeepSeek, against its formula in float64."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.routing import TopK
from moe_jax.routing.balance import device_balance_loss, load_balance_loss
from moe_jax.routing.losses import DeviceBalance, RoutingLosses, scoped_loss
from moe_jax.routing.types import RouterInputs

T, E, K, D = 60, 12, 3, 8


def route(seed, skew=0.0, k=K):
    """(prob_TE, expert_TK) in numpy, and the sums, of a router with skewed logits."""
    rng = np.random.default_rng(seed)
    x_TD = rng.normal(size=(T, D)).astype(np.float32)
    kernel_DE = rng.normal(size=(D, E)).astype(np.float32)
    bias_E = (skew * np.linspace(1, -1, E)).astype(np.float32)
    place_T = jnp.arange(T, dtype=jnp.int32)
    inputs = RouterInputs(
        x_TD=jnp.asarray(x_TD),
        valid_T=jnp.ones(T, bool),
        id_T=place_T,
        position_T=place_T,
        segment_T=jnp.ones(T, jnp.int32),
        E=E,
    )
    params = {"kernel": jnp.asarray(kernel_DE), "bias": jnp.asarray(bias_E)}
    a, sums = TopK(k=k, bias=True).route(params, {}, inputs)
    logits_TE = x_TD.astype(np.float64) @ kernel_DE + bias_E
    prob_TE = np.exp(logits_TE) / np.exp(logits_TE).sum(axis=1, keepdims=True)
    return prob_TE, np.asarray(a.expert_R).reshape(T, k), sums


def published(prob_TE, expert_TK, groups):
    """2401.06066 eq. 13-17 with alpha_2 = 1, term by term."""
    k = expert_TK.shape[1]
    f = [E / (k * T) * np.sum(expert_TK == e) for e in range(E)]
    p = [np.mean(prob_TE[:, e]) for e in range(E)]
    blocks = np.split(np.arange(E), groups)
    return sum(np.mean([f[j] for j in block]) * sum(p[j] for j in block) for block in blocks)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_published_formula(groups):
    for seed in range(5):
        prob_TE, expert_TK, sums = route(seed, skew=2.0)
        expected = published(prob_TE, expert_TK, groups)
        np.testing.assert_allclose(device_balance_loss(sums, groups), expected, rtol=1e-5)
        assert groups == 1 or expected > 1.05  # a skewed router is told


def test_ends_of_the_range():
    """One block is the constant 1, a block per expert the expert-level loss; gradients too."""
    _, _, sums = route(0, skew=1.0)

    def gradient(loss):
        return jax.grad(lambda prob_E: loss(dataclasses.replace(sums, prob_E=prob_E)))(sums.prob_E)

    np.testing.assert_allclose(device_balance_loss(sums, 1), 1, rtol=1e-6)
    np.testing.assert_allclose(gradient(lambda s: device_balance_loss(s, 1)), 1 / T, rtol=1e-6)
    np.testing.assert_allclose(device_balance_loss(sums, E), load_balance_loss(sums), rtol=1e-6)
    np.testing.assert_allclose(
        gradient(lambda s: device_balance_loss(s, E)), gradient(load_balance_loss), rtol=1e-6
    )


def test_skew_inside_a_block_costs_nothing():
    """Loads that are even over devices, not over experts: 1, where the expert-level loss is 2."""
    _, _, sums = route(0)
    even = jnp.tile(jnp.array([20, 0], jnp.int32), E // 2)
    sums = dataclasses.replace(sums, wanted_E=even, prob_E=even.astype(jnp.float32) / 2)
    np.testing.assert_allclose(device_balance_loss(sums, 3), 1, rtol=1e-6)
    np.testing.assert_allclose(load_balance_loss(sums), 2, rtol=1e-6)


def test_no_tokens_no_loss():
    _, _, sums = route(0)
    empty = jax.tree.map(jnp.zeros_like, sums)
    assert float(device_balance_loss(empty, 4)) == 0


@pytest.mark.parametrize("groups", [5, 0, -2, 24])
def test_blocks_that_do_not_exist(groups):
    with pytest.raises(ValueError, match="12 experts"):
        device_balance_loss(route(0)[2], groups)


def test_the_term_of_a_run():
    """Coefficient times the loss, summed over layers; off by default."""
    each = [route(seed, skew=1.0)[2] for seed in range(3)]
    sums_LG = jax.tree.map(lambda *leaves: jnp.stack(leaves)[:, None], *each)
    scopes = ("global_batch",)
    term = DeviceBalance(coefficient=0.05, groups=4)
    got = scoped_loss(RoutingLosses(device_balance=term), TopK(), sums_LG, scopes, 1)
    expected = 0.05 * sum(float(device_balance_loss(sums, 4)) for sums in each)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert float(scoped_loss(RoutingLosses(), TopK(), sums_LG, scopes, 1)) == 0
