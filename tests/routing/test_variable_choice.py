"""Routers in which a token takes as many experts as it needs: top-p and threshold."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from moe_jax.config.schedules import bind
from moe_jax.routing.plan import reduce_sums
from moe_jax.routing.token_choice.threshold import Threshold
from moe_jax.routing.token_choice.top_p import TopP
from tests.routing.given import identity_logits


def draw(T=40, E=5, scale=1.5, seed=0):
    return np.random.default_rng(seed).normal(size=(T, E)).astype(np.float32) * scale


def chosen(a):
    """Each token's experts, best first."""
    rows = np.asarray(a.expert_R).reshape(a.T, a.k)
    used = rows < a.E
    assert np.all(used[:, :-1] >= used[:, 1:])  # unused rows stand behind
    return [row[here].tolist() for row, here in zip(rows, used, strict=True)]


def smallest_set(q_E, p):
    """By trial: of the sets with sum >= p the smallest, of these the most probable."""
    every = range(len(q_E))
    for size in range(1, len(q_E) + 1):
        best = max(itertools.combinations(every, size), key=lambda s: q_E[list(s)].sum())
        if q_E[list(best)].sum() >= p:
            return sorted(best)
    return list(every)


@pytest.mark.parametrize("p", [0.0, 0.25, 0.4, 0.7, 0.95, 1.0])
def test_top_p_takes_the_smallest_set(p):
    logits_TE = draw()
    a, sums = identity_logits(TopP(p=p), jnp.asarray(logits_TE))
    q_TE = scipy.special.softmax(logits_TE.astype(np.float64), axis=1)
    sets = chosen(a)
    for q_E, found in zip(q_TE, sets, strict=True):
        assert sorted(found) == (list(range(5)) if p == 1 else smallest_set(q_E, p))
        assert found == sorted(found, key=lambda e: -q_E[e])
    weight_TK = np.asarray(a.weight_R).reshape(a.T, a.k)
    for q_E, found, weight_K in zip(q_TE, sets, weight_TK, strict=True):
        np.testing.assert_allclose(weight_K[: len(found)], q_E[found], rtol=2e-6)
        assert np.all(weight_K[len(found) :] == 0)
    np.testing.assert_allclose(sums.prob_E, q_TE.sum(0), rtol=1e-5)
    np.testing.assert_array_equal(
        sums.wanted_E, np.bincount(np.concatenate(sets).astype(int), minlength=5)
    )


def test_top_p_stops_exactly_at_p():
    """Four equal probabilities are 1/4 without rounding: half needs two, a hair more three."""
    for p, count in ((0.25, 1), (0.5, 2), (np.nextafter(np.float32(0.5), 1), 3), (0.75, 3)):
        a, _ = identity_logits(TopP(p=float(p)), jnp.zeros((1, 4)))
        assert chosen(a) == [list(range(count))]


def test_top_p_of_one_is_every_expert_of_positive_probability():
    """Also where rounded probabilities add up to 1 before the last, and not where one is 0."""
    logits_TE = draw(T=50, E=64, scale=4.0)
    a, sums = identity_logits(TopP(p=1.0), jnp.asarray(logits_TE))
    np.testing.assert_array_equal(sums.wanted_E, [50] * 64)
    a, _ = identity_logits(TopP(p=1.0), jnp.asarray([[0.0, -200.0, 0.0]]))
    assert chosen(a) == [[0, 2]]


def test_p_and_threshold_may_follow_a_schedule():
    logits_TE = jnp.asarray(draw())
    for router, name in ((TopP(), "p"), (Threshold(), "threshold")):

        @jax.jit
        def route(value, router=router, name=name):
            return identity_logits(bind(router, {name: value}), logits_TE)[0]

        for value in (0.0, 0.3, 1.0):
            fixed, _ = identity_logits(dataclasses.replace(router, **{name: value}), logits_TE)
            moving = route(jnp.float32(value))
            np.testing.assert_array_equal(moving.expert_R, fixed.expert_R)


def test_top_p_entropy_loss():
    logits_TE = draw()
    router = TopP(entropy_coefficient=0.25)
    _, sums = identity_logits(router, jnp.asarray(logits_TE), train=True)
    q_TE = scipy.special.softmax(logits_TE.astype(np.float64), axis=1)
    expected = 0.25 * scipy.stats.entropy(q_TE, axis=1).mean()
    np.testing.assert_allclose(router.losses(sums)["entropy"], expected, rtol=1e-5)
    # Going down the loss makes tokens take fewer experts.
    slope_TE = jax.grad(lambda x: router.losses(identity_logits(router, x)[1])["entropy"])(
        jnp.asarray(logits_TE)
    )
    sharper, _ = identity_logits(router, jnp.asarray(logits_TE) - 200 * slope_TE)
    assert sum(map(len, chosen(sharper))) < sum(
        map(len, chosen(identity_logits(router, jnp.asarray(logits_TE))[0]))
    )
    assert TopP(entropy_coefficient=0.0).losses(sums) == {}


@pytest.mark.parametrize(
    ("score", "formula", "threshold"),
    [
        ("softmax", lambda x: scipy.special.softmax(x, axis=1), 0.22),
        ("sigmoid", scipy.special.expit, 0.6),
    ],
)
def test_threshold_takes_what_reaches_it_and_the_best(score, formula, threshold):
    logits_TE = draw() - np.float32(1)
    a, sums = identity_logits(Threshold(score=score, threshold=threshold), jnp.asarray(logits_TE))
    s_TE = formula(logits_TE.astype(np.float64))
    alone = 0
    for s_E, found in zip(s_TE, chosen(a), strict=True):
        assert set(found) == {*np.flatnonzero(s_E >= threshold), int(np.argmax(s_E))}
        alone += s_E.max() < threshold
    assert score == "softmax" or alone > 0
    gate_TE = np.where(s_TE >= np.minimum(threshold, s_TE.max(1, keepdims=True)), s_TE, 0)
    np.testing.assert_allclose(sums.importance_E, gate_TE.sum(0), rtol=1e-5)
    np.testing.assert_allclose(sums.prob_E, (s_TE / s_TE.sum(1, keepdims=True)).sum(0), rtol=1e-5)


def test_threshold_is_reached_at_equality():
    a, _ = identity_logits(Threshold(threshold=0.25), jnp.zeros((1, 4)))
    assert chosen(a) == [[0, 1, 2, 3]]
    above = float(np.nextafter(np.float32(0.25), 1))
    a, _ = identity_logits(Threshold(threshold=above), jnp.zeros((1, 4)))
    assert chosen(a) == [[0]]


@pytest.mark.parametrize("router", [TopP(p=0.9), Threshold(threshold=0.05)])
def test_k_max_keeps_the_best_and_counts_the_others(router):
    logits_TE, valid_T = draw(scale=0.7), np.arange(40) < 33
    cut = dataclasses.replace(router, k_max=2)
    whole, all_sums = identity_logits(router, jnp.asarray(logits_TE), valid_T=valid_T, train=True)
    a, sums = identity_logits(cut, jnp.asarray(logits_TE), valid_T=valid_T, train=True)
    assert a.k == cut.choices(5) == 2 and whole.k == router.choices(5) == 5
    assert chosen(a) == [experts[:2] for experts in chosen(whole)]
    gone = [e for experts in chosen(whole) for e in experts[2:]]
    assert len(gone) > 20
    np.testing.assert_array_equal(sums.own["truncated_E"], np.bincount(gone, minlength=5))
    share = cut.metrics({}, sums)["truncated_fraction"]
    np.testing.assert_allclose(share, len(gone) / int(all_sums.wanted_E.sum()), rtol=1e-6)
    # Sums of two halves are the sums of the whole.
    halves = [
        identity_logits(cut, jnp.asarray(logits_TE[part]), valid_T=valid_T[part], train=True)[1]
        for part in (slice(0, 20), slice(20, 40))
    ]
    added = reduce_sums(jax.tree.map(lambda *leaves: jnp.stack(leaves), *halves))
    np.testing.assert_array_equal(added.own["truncated_E"], sums.own["truncated_E"])
    # In evaluation too; nothing is cut where k_max is not below E.
    _, quiet = identity_logits(cut, jnp.asarray(logits_TE), valid_T=valid_T)
    np.testing.assert_array_equal(quiet.own["truncated_E"], sums.own["truncated_E"])
    assert dataclasses.replace(router, k_max=9).choices(5) == 5
    assert dataclasses.replace(router, k_max=5).own_sums(5) == {}


def test_expected_k_is_for_capacity_alone():
    logits_TE = jnp.asarray(draw())
    for kind in (TopP, Threshold):
        assert kind(expected_k=1.5).experts_per_token(5, 40) == 1.5
        assert kind(expected_k=9.0).experts_per_token(5, 40) == 5
        assert kind(expected_k=9.0, k_max=3).experts_per_token(5, 40) == 3
        first, second = (
            identity_logits(kind(expected_k=k), logits_TE)[0].expert_R for k in (1.0, 4.0)
        )
        np.testing.assert_array_equal(first, second)


def test_values_out_of_range_are_told():
    assert dict(TopP(p=1.2).check()).keys() == {"p"}
    assert dict(TopP(k_max=0, expected_k=0.0).check()).keys() == {"k_max", "expected_k"}
    assert dict(Threshold(score="relu").check()).keys() == {"score"}
    assert not dict(TopP().check()) and not dict(Threshold().check())
