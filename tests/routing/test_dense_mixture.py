"""The dense mixture: every token to every expert, by the gate's probabilities."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from moe_jax.dispatch.dense import dense, outputs
from moe_jax.ops.expert_ffn import ExpertWeights
from moe_jax.routing import ROUTERS
from moe_jax.routing.capacity import expert_capacity
from moe_jax.routing.choice import scatter_gates
from moe_jax.routing.plan import make_plan
from moe_jax.routing.token_choice.dense_mixture import DenseMixture
from tests.routing.given import identity_logits, inputs


def test_all_experts_by_falling_probability():
    logits_TE = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32) * 2
    a, sums = identity_logits(DenseMixture(), jnp.asarray(logits_TE))
    p_TE = scipy.special.softmax(logits_TE.astype(np.float64), axis=1)
    order_TE = np.argsort(-p_TE, axis=1, kind="stable")
    assert a.k == DenseMixture().choices(5) == DenseMixture().experts_per_token(5, 30) == 5
    np.testing.assert_array_equal(a.expert_R.reshape(30, 5), order_TE)
    weight_TE = np.asarray(a.weight_R).reshape(30, 5)
    np.testing.assert_allclose(weight_TE, np.take_along_axis(p_TE, order_TE, 1), rtol=2e-6)
    np.testing.assert_allclose(weight_TE.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(sums.first_E, np.bincount(p_TE.argmax(1), minlength=5))
    np.testing.assert_array_equal(sums.wanted_E, [30] * 5)
    np.testing.assert_allclose(sums.importance_E, p_TE.sum(0), rtol=1e-5)


def test_ties_and_experts_that_are_off():
    off = -np.inf
    a, _ = identity_logits(
        DenseMixture(), jnp.asarray([[0.0, 1.0, 1.0, 0.0], [-60.0, 0.0, -200.0, 0.0]])
    )
    assert a.expert_R.reshape(2, 4).tolist() == [[1, 2, 0, 3], [1, 3, 0, 2]]

    router = DenseMixture(bias=True)
    assert set(router.params(3, 4)) == {"kernel", "bias"}
    params = {"kernel": jnp.zeros((3, 4)), "bias": jnp.asarray([0.0, off, np.log(3.0), off])}
    batch = dataclasses.replace(inputs(jnp.ones((2, 3))), E=4)
    a, _ = router.route(params, {}, batch)
    assert a.unused == 4
    assert a.expert_R.reshape(2, 4).tolist() == [[2, 0, 4, 4]] * 2
    np.testing.assert_allclose(a.weight_R.reshape(2, 4), [[0.75, 0.25, 0, 0]] * 2, rtol=1e-6)


def test_a_layer_is_the_mixture_of_all_outputs():
    """At capacity factor 1 nothing is dropped, and y = sum_e p_e o_e in float64."""
    T, D, F, E = 12, 4, 6, 3
    keys = jax.random.split(jax.random.key(0), 4)
    x_TD = jax.random.normal(keys[0], (T, D))
    experts = ExpertWeights(
        w_gate_EDF=None,
        w_up_EDF=jax.random.normal(keys[1], (E, D, F)),
        w_down_EFD=jax.random.normal(keys[2], (E, F, D)),
        activation="relu",
    )
    params = {"kernel": jax.random.normal(keys[3], (D, E))}
    router = DenseMixture()
    a, _ = router.route(params, {}, dataclasses.replace(inputs(x_TD), E=E))
    plan = make_plan(a, expert_capacity(T, E, router.experts_per_token(E, T), 1.0))
    assert np.all(plan.kept_R)
    found_TD = dense(x_TD[None], jax.tree.map(lambda leaf: leaf[None], plan), experts)[0]
    x, up, down, kernel = (
        np.asarray(v, np.float64)
        for v in (x_TD, experts.w_up_EDF, experts.w_down_EFD, params["kernel"])
    )
    p_TE = scipy.special.softmax(x @ kernel, axis=1)
    y_TED = np.stack([np.maximum(x @ up[e], 0) @ down[e] for e in range(E)], axis=1)
    np.testing.assert_allclose(outputs(x_TD, experts), y_TED, rtol=1e-4, atol=1e-4)
    expected_TD = np.einsum("te,ted->td", p_TE, y_TED)
    np.testing.assert_allclose(found_TD, expected_TD, rtol=1e-4, atol=1e-4)


def test_gates_of_all_experts_have_the_softmax_gradient():
    """dp_i / dz_j = p_i (1[i = j] - p_j): sorting by rank loses no gradient."""
    logits_TE = jnp.asarray([[0.3, -1.2, 0.9, 0.1]])

    def gates(logits_TE):
        a, _ = identity_logits(DenseMixture(), logits_TE)
        return scatter_gates(a.weight_R.reshape(1, 4), a.expert_R.reshape(1, 4), 4)[0]

    p_E = scipy.special.softmax(np.asarray(logits_TE[0], np.float64))
    expected = np.diag(p_E) - np.outer(p_E, p_E)
    np.testing.assert_allclose(jax.jacobian(gates)(logits_TE)[:, 0], expected, atol=1e-6)


def test_it_is_in_the_table():
    assert ROUTERS["dense_mixture"] is DenseMixture
    assert DenseMixture().causal and not DenseMixture(drop_order="batch_priority").causal
