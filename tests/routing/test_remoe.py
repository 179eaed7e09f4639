"""ReMoE: gates, loss and its gradient against float64 numpy, and the controller in training."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.routing.plan import reduce_sums
from moe_jax.routing.token_choice.remoe import MAX_LAMBDA, MIN_LAMBDA, ReMoE
from tests.routing.given import inputs

T, D, E = 48, 6, 8


def state(value):
    return {"lambda": jnp.float32(value)}


def case(seed=0):
    rng = np.random.default_rng(seed)
    x_TD = rng.normal(size=(T, D)).astype(np.float32)
    kernel_DE = rng.normal(size=(D, E)).astype(np.float32)
    valid_T = np.arange(T) < 41
    return x_TD, kernel_DE, valid_T


def route(router, x_TD, kernel_DE, valid_T, value=0.5, train=True):
    params = {"kernel": jnp.asarray(kernel_DE)}
    return router.route(
        params, state(value), inputs(jnp.asarray(x_TD), valid_T=valid_T, train=train)
    )


def test_positive_gates_are_the_weights():
    x_TD, kernel_DE, valid_T = case()
    a, sums = route(ReMoE(), x_TD, kernel_DE, valid_T)
    gate_TE = np.maximum(x_TD.astype(np.float64) @ kernel_DE, 0) * valid_T[:, None]
    found_TE = np.zeros((T, E))
    used = np.asarray(a.expert_R) < E
    found_TE[np.asarray(a.token_R)[used], np.asarray(a.expert_R)[used]] = np.asarray(a.weight_R)[
        used
    ]
    np.testing.assert_allclose(found_TE, gate_TE, rtol=1e-5, atol=1e-6)
    assert used.sum() == (gate_TE > 0).sum()
    np.testing.assert_array_equal(sums.wanted_E, (gate_TE > 0).sum(0))
    np.testing.assert_allclose(sums.importance_E, gate_TE.sum(0), rtol=1e-5)
    total_T1 = gate_TE.sum(1, keepdims=True)
    prob_TE = np.where(total_T1 > 0, gate_TE / np.maximum(total_T1, 1e-30), 1 / E)
    np.testing.assert_allclose(sums.prob_E, prob_TE[valid_T].sum(0), rtol=1e-5)


def test_a_token_may_have_no_expert():
    a, sums = route(ReMoE(), -np.ones((T, 1), np.float32), np.ones((1, E), np.float32), None)
    assert np.all(np.asarray(a.expert_R) == E)
    np.testing.assert_allclose(sums.prob_E, [T / E] * E, rtol=1e-6)
    assert float(ReMoE().metrics(state(1), sums)["sparsity"]) == 1


def test_loss_and_its_gradient():
    x_TD, kernel_DE, valid_T = case(1)
    router, value = ReMoE(k=3), 0.3

    def loss(kernel_DE):
        return router.losses(route(router, x_TD, kernel_DE, valid_T, value)[1])["l1"]

    x, w, n = x_TD[valid_T].astype(np.float64), kernel_DE.astype(np.float64), valid_T.sum()
    gate_TE = np.maximum(x @ w, 0)
    f_E = E / (3 * n) * (gate_TE > 0).sum(0)
    np.testing.assert_allclose(
        loss(jnp.asarray(kernel_DE)), value / n * (f_E * gate_TE.sum(0)).sum(), rtol=1e-5
    )
    slope_DE = value / n * f_E * (x.T @ (gate_TE > 0))
    np.testing.assert_allclose(
        jax.grad(loss)(jnp.asarray(kernel_DE)), slope_DE, rtol=1e-4, atol=1e-6
    )


def test_sums_of_groups_are_the_sums_of_the_batch():
    x_TD, kernel_DE, valid_T = case(2)
    router = ReMoE(k_max=3)
    _, whole = route(router, x_TD, kernel_DE, valid_T)
    halves = [
        route(router, x_TD[part], kernel_DE, valid_T[part])[1]
        for part in (slice(0, 24), slice(24, 48))
    ]
    added = reduce_sums(jax.tree.map(lambda *leaves: jnp.stack(leaves), *halves))
    np.testing.assert_allclose(router.losses(added)["l1"], router.losses(whole)["l1"], rtol=1e-6)
    np.testing.assert_array_equal(
        router.update(state(1), added)["lambda"], router.update(state(1), whole)["lambda"]
    )


def test_k_max_hides_nothing_from_loss_and_controller():
    x_TD, kernel_DE, valid_T = case(3)
    free, cut = ReMoE(), ReMoE(k_max=2)
    _, all_sums = route(free, x_TD, kernel_DE, valid_T)
    _, sums = route(cut, x_TD, kernel_DE, valid_T)
    gate_TE = np.maximum(x_TD @ kernel_DE, 0) * valid_T[:, None]
    two_TE = np.where(np.argsort(np.argsort(-gate_TE, 1), 1) < 2, gate_TE, 0)
    np.testing.assert_array_equal(sums.wanted_E, (two_TE > 0).sum(0))
    np.testing.assert_allclose(free.losses(all_sums)["l1"], cut.losses(sums)["l1"], rtol=1e-6)
    found, expected = cut.metrics(state(1), sums), free.metrics(state(1), all_sums)
    np.testing.assert_allclose(found["sparsity"], expected["sparsity"], rtol=1e-6)
    np.testing.assert_allclose(found["sparsity"], 1 - (gate_TE > 0).sum() / (41 * E), rtol=1e-5)
    gone = (gate_TE > 0).sum() - (two_TE > 0).sum()
    np.testing.assert_allclose(found["truncated_fraction"], gone / (gate_TE > 0).sum(), rtol=1e-6)
    # In evaluation too; only the loss is of training alone.
    _, quiet = route(cut, x_TD, kernel_DE, valid_T, train=False)
    assert cut.losses(quiet) == {} and cut.metrics(state(1), quiet).keys() == found.keys()
    for name, value in cut.metrics(state(1), quiet).items():
        np.testing.assert_allclose(value, found[name], rtol=1e-6)


def test_one_step_of_the_controller():
    x_TD, kernel_DE, valid_T = case()
    _, sums = route(ReMoE(), x_TD, kernel_DE, valid_T)

    def after(count, value=0.25, **options):
        """With `count` of the 41 * 8 gates above 0."""
        wanted_E = jnp.zeros(E, jnp.int32).at[0].set(count)
        changed = dataclasses.replace(sums, wanted_E=wanted_E)
        return float(ReMoE(**options).update(state(value), changed)["lambda"])

    np.testing.assert_allclose(after(83), 0.25 * 1.2, rtol=1e-6)  # 41 * 8 / 4 = 82 are wanted
    np.testing.assert_allclose(after(81), 0.25 / 1.2, rtol=1e-6)
    assert after(82) == 0.25
    assert after(82, k=E) > after(328, k=E) * 0.8  # dense: nothing to push
    assert after(83, value=MAX_LAMBDA) == np.float32(MAX_LAMBDA) and after(81, value=MIN_LAMBDA) > 0
    empty = dataclasses.replace(sums, valid=jnp.int32(0), wanted_E=jnp.zeros(E, jnp.int32))
    assert float(ReMoE().update(state(0.25), empty)["lambda"]) == 0.25


def train(seed, first_lambda, *, steps=260, tokens=256, width=16, k=2):
    """Regression of a tanh layer by one layer of linear experts; sparsity and lambda by step."""
    router = ReMoE(k=k)
    keys = jax.random.split(jax.random.key(seed), 4)
    target_DD = jax.random.normal(keys[0], (width, width)) * width**-0.5
    params = {
        "kernel": jax.random.normal(keys[1], (width, E)) * width**-0.5,
        "experts": jax.random.normal(keys[2], (E, width, width)) * 0.1 * width**-0.5,
    }
    optimizer = optax.adam(0.01)

    def loss(params, state, x_TD, y_TD):
        a, sums = router.route({"kernel": params["kernel"]}, state, inputs(x_TD, train=True))
        gate_TE = jnp.zeros((tokens, E)).at[a.token_R, a.expert_R].add(a.weight_R, mode="drop")
        out_TD = jnp.einsum("TE,TD,EDF->TF", gate_TE, x_TD, params["experts"])
        return jnp.mean(jnp.square(out_TD - y_TD)) + router.losses(sums)["l1"], sums

    def step(carry, key):
        params, opt_state, state = carry
        # As hidden states, not of mean 0: else half of all gates are positive whatever W.
        x_TD = 0.5 + jax.random.normal(key, (tokens, width))
        y_TD = jnp.tanh(x_TD @ target_DD)
        gradient, sums = jax.grad(loss, has_aux=True)(params, state, x_TD, y_TD)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradient, opt_state)
        params = optax.apply_updates(params, updates)
        found = router.metrics(state, sums)
        return (params, opt_state, router.update(state, sums)), (found["sparsity"], found["lambda"])

    carry = (params, optimizer.init(params), {"lambda": first_lambda})
    return jax.lax.scan(step, carry, jax.random.split(keys[3], steps))[1]


@pytest.mark.grid
def test_the_controller_reaches_its_target_from_lambdas_of_sixteen_decades():
    """Target 1 - 2/8. From 1e-10 on within 150 steps, below in the time that a factor of 1.2 a step
    needs to come to the lambda at which the L1 weighs something; and it stays there."""
    first = np.float32([1e-16, 1e-13, 1e-10, 1e-8, 1e-6, 1e-3, 1])
    seeds = np.arange(2)
    both = jax.jit(jax.vmap(jax.vmap(train, in_axes=(None, 0)), in_axes=(0, None)))
    sparsity, lambdas = (np.asarray(x) for x in both(seeds, first))
    assert np.all(sparsity[:, :-1, 0] < 0.65)  # about half of the gates, as they are drawn
    near = np.abs(sparsity - 0.75) < 0.03
    assert np.all(near.any(axis=2))
    arrival = near.argmax(axis=2)
    assert np.all(arrival[:, first >= 1e-10] < 150)
    assert np.all(arrival[:, first >= 1e-6] < 100)
    growth = np.log(1 / first.astype(np.float64)) / math.log(1.2)
    assert np.all(arrival <= growth + 30)
    # A first lambda of 1 is above what the task can hold against: experts die, see the docstring.
    held = sparsity[:, :-1, -60:].mean(axis=2)
    assert np.all(np.abs(held - 0.75) < 0.03)
    assert np.all((lambdas[:, :-1, -1] > 0.05) & (lambdas[:, :-1, -1] < 5))
    assert np.all(sparsity[:, -1, -60:].mean(axis=1) > 0.65)
