"""Task-level routing: the experts of a token are those of its task."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from moe_jax.routing import TaskLevel
from tests.routing.any_router import E, T, inputs, parameters

N = 3


def routed(router, given, params):
    return router.route(params, {}, given)


@pytest.mark.parametrize("renormalize", [True, False])
def test_against_float64(renormalize):
    router = TaskLevel(tasks=N, k=2, renormalize=renormalize)
    params, given = parameters(router), inputs(padding=2)
    assert params["tasks"].shape == (N, E)
    a, sums = routed(router, given, params)
    prob_NE = softmax(np.asarray(params["tasks"], np.float64), axis=1)
    prob_TE = prob_NE[np.asarray(given.task_T)]
    best_TK = np.argsort(-prob_TE, axis=1)[:, :2]
    weight_TK = np.take_along_axis(prob_TE, best_TK, axis=1)
    if renormalize:
        weight_TK = weight_TK / weight_TK.sum(axis=1, keepdims=True)
    valid = np.arange(T) < T - 2
    np.testing.assert_array_equal(a.expert_R.reshape(T, 2)[valid], best_TK[valid])
    np.testing.assert_allclose(a.weight_R.reshape(T, 2)[valid], weight_TK[valid], rtol=1e-6)
    assert (np.asarray(a.expert_R).reshape(T, 2)[~valid] == a.unused).all()
    np.testing.assert_allclose(sums.prob_E, prob_TE[valid].sum(axis=0), rtol=1e-5)


def test_what_a_token_holds_does_not_matter():
    router = TaskLevel(tasks=N)
    params = parameters(router)
    one, other = (routed(router, inputs(seed=seed), params)[0] for seed in (0, 1))
    np.testing.assert_array_equal(one.expert_R, other.expert_R)
    np.testing.assert_array_equal(one.weight_R, other.weight_R)


def test_tokens_without_a_task_are_of_the_first_and_others_stay_in_the_table():
    router = TaskLevel(tasks=N)
    params, given = parameters(router), inputs()
    none, _ = routed(router, dataclasses.replace(given, task_T=None), params)
    first, _ = routed(router, dataclasses.replace(given, task_T=jnp.zeros(T, jnp.int32)), params)
    np.testing.assert_array_equal(none.expert_R, first.expert_R)
    beyond, _ = routed(router, dataclasses.replace(given, task_T=jnp.full(T, 99)), params)
    last, _ = routed(router, dataclasses.replace(given, task_T=jnp.full(T, N - 1)), params)
    np.testing.assert_array_equal(beyond.expert_R, last.expert_R)


def test_only_the_tasks_that_occur_have_a_gradient():
    router = TaskLevel(tasks=N)
    params, given = parameters(router), inputs()
    given = dataclasses.replace(given, task_T=jnp.where(given.task_T == 1, 0, given.task_T))

    def total(params):
        a, _ = routed(router, given, params)
        return jnp.sum(a.weight_R.reshape(T, 2) * jnp.asarray([1.0, 2.0])[None])

    slope_NE = np.asarray(jax.grad(total)(params)["tasks"])
    assert np.abs(slope_NE[[0, 2]]).max(axis=1).min() > 0 and not slope_NE[1].any()


def test_rules():
    assert not list(TaskLevel().check())
    assert {name for name, _ in TaskLevel(tasks=-1, k=0).check()} == {"tasks", "k"}
    assert list(TaskLevel(k=1).warn()) and not list(TaskLevel(k=1, renormalize=False).warn())
