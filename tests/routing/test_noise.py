"""The noise of routers, written out in float64 numpy from the same random numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from moe_jax.routing import NoisyTopK, Switch, VMoE
from moe_jax.routing.choice import jitter
from tests.routing.given import identity_logits, inputs

T, D, E, K = 17, 8, 6, 2


def standard_normal(key, shape):
    """The numbers that a router draws from its group's key."""
    return np.asarray(jax.random.normal(jax.random.fold_in(key, 1), shape), np.float64)


def test_noisy_top_k_against_float64():
    """H = x W + N(0, 1) (softplus(x W_noise) + 0.01); softmax over the k largest of H; the load
    Phi((x W - k-th largest of the others' H) / std): 1701.06538 eq. 3-5 and 8-10."""
    rng, key = np.random.default_rng(0), jax.random.key(2)
    x, w, w_noise = rng.normal(size=(T, D)), rng.normal(size=(D, E)), rng.normal(size=(D, E))
    params = {"kernel": jnp.asarray(w), "noise_kernel": jnp.asarray(w_noise)}
    a, sums = NoisyTopK(k=K).route(params, {}, inputs(x, key, train=True))
    clean, std = x @ w, np.log1p(np.exp(x @ w_noise)) + 0.01
    noisy = clean + std * standard_normal(key, (T, E))
    best_TK = np.argsort(-noisy, axis=1)[:, :K]
    assert not np.array_equal(np.sort(best_TK), np.sort(np.argsort(-clean, axis=1)[:, :K]))
    np.testing.assert_array_equal(np.asarray(a.expert_R).reshape(T, K), best_TK)
    weight_TK = scipy.special.softmax(np.take_along_axis(noisy, best_TK, axis=1), axis=1)
    np.testing.assert_allclose(np.asarray(a.weight_R).reshape(T, K), weight_TK, rtol=2e-5)
    chance = np.zeros((T, E))
    for t in range(T):
        for e in range(E):
            kth = np.sort(np.delete(noisy[t], e))[-K]
            chance[t, e] = scipy.stats.norm.cdf((clean[t, e] - kth) / std[t, e])
    np.testing.assert_allclose(sums.load_E, chance.sum(0), rtol=1e-4)
    gates_E = np.zeros(E)
    np.add.at(gates_E, best_TK, weight_TK)
    np.testing.assert_allclose(sums.importance_E, gates_E, rtol=1e-5)


def test_v_moe_importance_is_of_the_probabilities_without_noise():
    """2106.05974 appendix A.2: importance sums softmax(x W), although the noisy one chooses."""
    logits_TE, key = np.random.default_rng(1).normal(size=(T, E)), jax.random.key(5)
    router = VMoE(k=K, noise_std=6.0)
    a, sums = identity_logits(router, jnp.asarray(logits_TE), key=key, train=True)
    prob = scipy.special.softmax(logits_TE, axis=1)
    np.testing.assert_allclose(sums.importance_E, prob.sum(0), rtol=1e-5)
    noisy = scipy.special.softmax(logits_TE + standard_normal(key, (T, E)), axis=1)
    best_TK = np.argsort(-noisy, axis=1)[:, :K]
    np.testing.assert_array_equal(np.asarray(a.expert_R).reshape(T, K), best_TK)
    weight_TK = np.take_along_axis(noisy, best_TK, axis=1)
    np.testing.assert_allclose(np.asarray(a.weight_R).reshape(T, K), weight_TK, rtol=2e-5)


def test_jitter_is_uniform_around_one_and_only_in_training():
    """x times uniform(1 - amount, 1 + amount), by the Kolmogorov-Smirnov test; as it is in
    evaluation, also where there is a key."""
    x_TD, key = jnp.full((400, 10), 3.0), jax.random.key(0)
    found = np.asarray(jitter(x_TD, inputs(x_TD, key, train=True), 0.2)) / 3
    within = scipy.stats.uniform(0.8, 0.4)
    assert scipy.stats.kstest(found.reshape(-1), within.cdf).pvalue > 1e-3
    for quiet in (inputs(x_TD, key), inputs(x_TD, train=True), inputs(x_TD)):
        np.testing.assert_array_equal(jitter(x_TD, quiet, 0.2), x_TD)
    logits_TE = jnp.asarray(np.random.default_rng(2).normal(size=(T, E)), jnp.float32)
    router, calm = Switch(jitter=0.5), Switch(jitter=0.0)
    loud, _ = identity_logits(router, logits_TE, key=key, train=True)
    evaluated, _ = identity_logits(router, logits_TE, key=key)
    expected, _ = identity_logits(calm, logits_TE)
    np.testing.assert_array_equal(evaluated.weight_R, expected.weight_R)
    assert not np.array_equal(loud.weight_R, expected.weight_R)
