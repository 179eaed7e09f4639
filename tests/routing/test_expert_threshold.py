"""Expert threshold: its update against numpy's quantiles, the load it leads to, causality."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.routing import ExpertThreshold
from moe_jax.routing.plan import add_sums
from tests.routing.any_router import D, E, T, inputs, parameters

N = 4096


def large(seed, padding=0):
    return inputs(seed=seed, tokens=N, padding=padding)


def logits_of(batch, params):
    return np.asarray(batch.x_TD, np.float64) @ np.asarray(params["kernel"], np.float64)


def scores(batch, params, score="sigmoid"):
    logits = logits_of(batch, params)
    if score == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_update_against_numpy(score):
    """First the quantile itself, then the moving average; over the sums of several groups."""
    router = ExpertThreshold(score=score, decay=0.75)
    params, state = parameters(router), router.state(E)
    expected = None
    for step in range(3):
        batches = [large(2 * step, padding=500), large(2 * step + 1)]
        sums = add_sums(*(router.route(params, state, batch)[1] for batch in batches))
        state = router.update(state, sums)
        valid = [scores(b, params, score)[np.asarray(b.valid_T)] for b in batches]
        quantile = np.quantile(np.concatenate(valid), 1 - 2 / E, axis=0)
        expected = quantile if expected is None else 0.75 * expected + 0.25 * quantile
        np.testing.assert_allclose(
            state["threshold"], expected, atol=5e-4
        )  # half of the way between two marks


def test_load_converges_to_the_share_of_every_expert():
    """On random inputs and experts of very different scores."""
    router = ExpertThreshold(decay=0.9)
    params, state = parameters(router), router.state(E)
    params = {"kernel": params["kernel"] * (1 + jnp.arange(E, dtype=jnp.float32))[None, :]}
    route = jax.jit(lambda state, batch: router.route(params, state, batch)[1])
    before = route(state, large(99)).wanted_E
    for seed in range(20):
        state = router.update(state, route(state, large(seed)))
    after = np.asarray(route(state, large(99)).wanted_E) / N
    np.testing.assert_allclose(after, 2 / E, rtol=0.08)  # 3 deviations of a count of 1365 in 4096
    assert np.max(before) / np.min(before) > 1.3
    assert after.sum() == pytest.approx(router.experts_per_token(E, N), rel=0.03)


def test_choices_against_numpy():
    router = ExpertThreshold()
    params, batch = parameters(router), inputs()
    threshold = np.linspace(0.2, 0.8, E)
    a, sums = router.route(params, {"threshold": jnp.asarray(threshold, jnp.float32)}, batch)
    S = scores(batch, params)
    above = threshold < S
    found = np.zeros((T, E))
    used = np.asarray(a.expert_R) < E
    found[np.asarray(a.token_R)[used], np.asarray(a.expert_R)[used]] = np.asarray(a.weight_R)[used]
    np.testing.assert_allclose(found, S * above, rtol=1e-5)
    assert np.array_equal(sums.wanted_E, above.sum(0))
    weight_TK = np.asarray(a.weight_R).reshape(T, E)
    assert np.all(np.diff(weight_TK, axis=1) <= 0)  # best first


def test_before_the_first_update_a_token_takes_its_best():
    router = ExpertThreshold(capacity_factor=1.5)
    params, batch = parameters(router), inputs()
    a, _ = router.route(params, router.state(E), batch)
    best = np.argsort(-logits_of(batch, params), axis=1)[:, :2]
    expert_TK = np.asarray(a.expert_R).reshape(T, E)
    assert np.array_equal(expert_TK[:, :2], best) and np.all(expert_TK[:, 2:] == E)


def test_k_max_keeps_the_best_and_counts_the_rest():
    params, batch = parameters(ExpertThreshold()), inputs(padding=4)
    state = {"threshold": jnp.full((E,), 0.3)}
    (free, _), (a, sums) = (ExpertThreshold(k_max=k).route(params, state, batch) for k in (None, 2))
    expected = np.asarray(free.expert_R).reshape(T, E)[:, :2]
    assert np.array_equal(np.asarray(a.expert_R).reshape(T, 2), expected)
    all_wanted, wanted = int(np.sum(np.asarray(free.expert_R) < E)), int(np.sum(sums.wanted_E))
    assert float(sums.own["over_k_max"]) == all_wanted - wanted > 0
    metrics = ExpertThreshold(k_max=2).metrics(state, sums)
    assert float(metrics["over_k_max"]) == pytest.approx(1 - wanted / all_wanted)
    assert float(metrics["threshold"]) == pytest.approx(0.3)


def test_a_token_depends_on_no_other():
    router = ExpertThreshold()
    params, state = parameters(router), {"threshold": jnp.full((E,), 0.4)}
    batch = inputs(train=False)
    other = dataclasses.replace(batch, x_TD=batch.x_TD.at[1:].set(jnp.ones((T - 1, D))))
    (a, _), (b, _) = (router.route(params, state, x) for x in (batch, other))
    for one, two in ((a.expert_R, b.expert_R), (a.weight_R, b.weight_R)):
        assert np.array_equal(one[:E], two[:E])
    assert router.causal and not ExpertThreshold(drop_order="choice_major").causal


def test_an_expert_without_tokens_keeps_its_threshold():
    router = ExpertThreshold(bias=True)
    params = parameters(router)
    params["bias"] = params["bias"].at[1].set(-jnp.inf)
    state = {"threshold": jnp.full((E,), 0.4)}
    for batch, kept in ((inputs(), [1]), (inputs(padding=T), list(range(E)))):
        after = np.asarray(router.update(state, router.route(params, state, batch)[1])["threshold"])
        assert np.flatnonzero(after == np.float32(0.4)).tolist() == kept


def test_checks():
    broken = ExpertThreshold(capacity_factor=0.0, k_max=0, score="sqrt_softplus", decay=1.0)
    assert dict(broken.check()).keys() == {"capacity_factor", "k_max", "score", "decay"}
    assert dict(ExpertThreshold(capacity_factor=7.0).check_experts(6)).keys() == {"capacity_factor"}
