"""The errors of Jacobs, Jordan, Nowlan and Hinton (1991) against float64 numpy and scipy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from experiments.local_experts.errors import (
    class_responsibilities,
    classification_loss,
    competing_loss,
    cooperative_loss,
    likelihood_loss,
    responsibilities,
)

T, E, D = 20, 4, 3


@pytest.fixture
def case():
    """p, y and d in float32, and the same in float64."""
    rng = np.random.default_rng(3)
    p_TE = scipy.special.softmax(rng.normal(size=(T, E)) * 2, axis=1).astype(np.float32)
    y_TED = rng.normal(size=(T, E, D)).astype(np.float32)
    d_TD = rng.normal(size=(T, D)).astype(np.float32)
    arrays = (p_TE, y_TED, d_TD)
    return tuple(map(jnp.asarray, arrays)), tuple(v.astype(np.float64) for v in arrays)


def squared(y, d):
    return ((d[:, None] - y) ** 2).sum(-1)


def test_cooperative_and_competing(case):
    found, (p, y, d) = case
    together = ((d - np.einsum("te,ted->td", p, y)) ** 2).sum(-1)
    np.testing.assert_allclose(cooperative_loss(*found), together, rtol=1e-5, atol=1e-6)
    per_member = (p * squared(y, d)).sum(1)
    np.testing.assert_allclose(competing_loss(*found), per_member, rtol=1e-5)
    # What eq. 1.2 adds to 1.1 is the spread of the experts: bias plus variance.
    mean = np.einsum("te,ted->td", p, y)
    spread = np.einsum("te,ted->t", p, (y - mean[:, None]) ** 2)
    np.testing.assert_allclose(
        competing_loss(*found) - cooperative_loss(*found), spread, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("std", [1.0, 0.3])
def test_likelihood_and_posterior(case, std):
    found, (p, y, d) = case
    power = -squared(y, d) / (2 * std**2)
    expected = -scipy.special.logsumexp(power, b=p, axis=1)
    np.testing.assert_allclose(likelihood_loss(*found, std), expected, rtol=1e-5, atol=1e-6)
    joint = p * np.exp(power)
    h_TE = joint / joint.sum(1, keepdims=True)
    np.testing.assert_allclose(responsibilities(*found, std), h_TE, rtol=1e-4, atol=1e-7)


def test_gradients_at_the_outputs_are_the_papers(case):
    """Eq. 1.4: -2 p_i (d - o_i). Eq. 1.5: -h_i (d - o_i)."""
    (p_TE, y_TED, d_TD), (p, y, d) = case
    miss = d[:, None] - y

    def gradient(loss):
        return jax.grad(lambda y_TED: jnp.sum(loss(p_TE, y_TED, d_TD)))(y_TED)

    np.testing.assert_allclose(
        gradient(competing_loss), -2 * p[:, :, None] * miss, rtol=1e-5, atol=1e-6
    )
    joint = p * np.exp(-squared(y, d) / 2)
    h = joint / joint.sum(1, keepdims=True)
    np.testing.assert_allclose(
        gradient(likelihood_loss), -h[:, :, None] * miss, rtol=1e-4, atol=1e-6
    )


def test_gradient_at_the_gate_raises_the_experts_that_fit_better(case):
    """By logits z of the gate: dE / dz_i = p_i - h_i."""
    (_, y_TED, d_TD), (p, y, d) = case

    def total(logits_TE):
        return jnp.sum(likelihood_loss(jax.nn.softmax(logits_TE), y_TED, d_TD))

    joint = p * np.exp(-squared(y, d) / 2)
    h = joint / joint.sum(1, keepdims=True)
    found = jax.grad(total)(jnp.asarray(np.log(p), jnp.float32))
    np.testing.assert_allclose(found, p - h, rtol=1e-4, atol=1e-6)


def test_one_expert_leaves_the_squared_error(case):
    (_, y_TED, d_TD), (_, y, d) = case
    p_TE, y_TED = jnp.ones((T, 1)), y_TED[:, :1]
    error_T = squared(y, d)[:, 0]
    for loss, factor in ((cooperative_loss, 1), (competing_loss, 1), (likelihood_loss, 0.5)):
        np.testing.assert_allclose(loss(p_TE, y_TED, d_TD), factor * error_T, rtol=1e-5)
    assert np.all(np.asarray(responsibilities(p_TE, y_TED, d_TD)) == 1)


def test_far_targets_and_closed_experts():
    """exp of every density underflows; an expert with probability 0 takes no part."""
    y_TED = jnp.asarray([[[0.0], [1.0], [2.0e4]]])
    d_TD = jnp.asarray([[1.0e4]])
    p_TE = jnp.asarray([[0.75, 0.25, 0.0]])
    power = -0.5 * (1.0e4 - np.array([0.0, 1.0])) ** 2
    expected = -scipy.special.logsumexp(power, b=[0.75, 0.25])
    np.testing.assert_allclose(likelihood_loss(p_TE, y_TED, d_TD), [expected], rtol=1e-6)
    np.testing.assert_allclose(responsibilities(p_TE, y_TED, d_TD), [[0, 1, 0]], atol=1e-6)
    found = jax.grad(lambda p, y: likelihood_loss(p, y, d_TD)[0], (0, 1))(p_TE, y_TED)
    np.testing.assert_allclose(found[0], [[0, -4, 0]], atol=1e-5)
    np.testing.assert_allclose(found[1], [[[0], [-9999], [0]]], rtol=1e-6)

    # Probabilities that float32 holds only as subnormal numbers: 1 / p would be infinite.
    tiny_TE = jnp.asarray([[1.0, 1e-40, 0.0]], jnp.float32)
    found = jax.grad(lambda p, y: likelihood_loss(p, y, d_TD)[0], (0, 1))(tiny_TE, y_TED)
    assert all(np.all(np.isfinite(leaf)) for leaf in found)


def test_classes(case):
    (p_TE, y_TED, _), (p, y, _) = case
    target_T = np.arange(T) % D
    density_TE = scipy.special.softmax(y, axis=-1)[np.arange(T), :, target_T]
    label_T = jnp.asarray(target_T, jnp.int32)
    mixed_T = (p * density_TE).sum(1)
    np.testing.assert_allclose(
        classification_loss(p_TE, y_TED, label_T), -np.log(mixed_T), rtol=1e-5
    )
    np.testing.assert_allclose(
        class_responsibilities(p_TE, y_TED, label_T), p * density_TE / mixed_T[:, None], rtol=1e-4
    )
    far = classification_loss(p_TE, y_TED * 1e4, label_T)
    assert np.all(np.isfinite(far)) and np.max(far) > 100


def test_bfloat16_outputs_are_taken_in_float32(case):
    (p_TE, y_TED, d_TD), _ = case
    rounded = y_TED.astype(jnp.bfloat16)
    for loss in (cooperative_loss, competing_loss, likelihood_loss):
        found = loss(p_TE, rounded, d_TD)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, loss(p_TE, rounded.astype(jnp.float32), d_TD))


def trained_information(loss, seed):
    """Bits that an expert drawn by the trained gate tells about which of two lines a case is on."""
    rng = np.random.default_rng(seed)
    # No cases near the border: a linear gate of ordinary size can tell the regimes apart.
    x_T = rng.uniform(0.3, 1, 200) * rng.choice([-1, 1], 200)
    regime_T = x_T > 0
    d_T = np.where(regime_T, 2 * x_T - 1, -2 * x_T - 2) + 0.05 * rng.normal(size=200)
    x_TD = jnp.asarray(np.stack([x_T, np.ones(200)], 1), jnp.float32)
    d_TD = jnp.asarray(d_T[:, None], jnp.float32)
    params = [jnp.asarray(rng.uniform(-0.5, 0.5, (2, 4)), jnp.float32) for _ in range(2)]

    def total(params):
        p_TE = jax.nn.softmax(x_TD @ params[0])
        return jnp.mean(loss(p_TE, (x_TD @ params[1])[:, :, None], d_TD))

    def step(params, _):
        gradient = jax.grad(total)(params)
        return jax.tree.map(lambda w, g: w - 0.3 * g, params, gradient), None

    params, _ = jax.jit(lambda params: jax.lax.scan(step, params, length=1500))(params)
    p_TE = np.asarray(jax.nn.softmax(x_TD @ params[0]), np.float64)
    joint_RE = np.stack([regime_T, ~regime_T]).astype(float) @ p_TE / 200
    independent_RE = joint_RE.sum(1, keepdims=True) * joint_RE.sum(0)
    ratio_RE = np.where(joint_RE > 0, joint_RE / independent_RE, 1)
    return float(np.sum(joint_RE * np.log2(ratio_RE)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_likelihood_specialises_and_cooperation_does_less(seed):
    def narrow(p_TE, y_TED, d_TD):
        return likelihood_loss(p_TE, y_TED, d_TD, 0.5)

    alone = trained_information(narrow, seed)
    together = trained_information(cooperative_loss, seed)
    assert alone > 0.8
    assert together < alone - 0.2
