"""Soft counts and the quantile read from them: against float64 numpy, and continuous."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.routing import ExpertThreshold, QuantileBalancing
from moe_jax.routing.bias_balanced.bias import MARKS, count_below, counted_quantile, margins_below
from moe_jax.routing.plan import add_sums
from tests.routing.given import inputs

STEP = 1 / (MARKS - 1)  # between two marks


count = jax.jit(count_below, static_argnums=2)
read_quantile = jax.jit(counted_quantile, static_argnums=1)


def below(value_TE, counted_TE=None, marks=MARKS):
    value_TE = jnp.asarray(value_TE, jnp.float32)
    counted_TE = jnp.ones(value_TE.shape, bool) if counted_TE is None else jnp.asarray(counted_TE)
    return count(value_TE, counted_TE, marks)


def quantile(values, share):
    return float(read_quantile(below(np.reshape(values, (-1, 1))), share)[0])


def test_counts_against_float64():
    """Each value shared by its distance to the two marks beside it; of these the running sums."""
    rng = np.random.default_rng(0)
    value_TE, counted_TE = rng.random((50, 3)), rng.random((50, 3)) < 0.8
    value_TE[:4] = [[0.0], [1.0], [3 / 15], [1 / 15]]
    mark_N = np.arange(16) / 15
    share_TEN = np.maximum(1 - np.abs(value_TE[..., None] - mark_N) * 15, 0)
    np.testing.assert_allclose(share_TEN.sum(2), 1)
    expected_EN = np.cumsum(np.sum(share_TEN * counted_TE[..., None], axis=0), axis=1)
    found_EN = np.asarray(below(value_TE, counted_TE, 16))
    np.testing.assert_allclose(found_EN, expected_EN, rtol=1e-5, atol=1e-5)
    # Which shares the mean exactly.
    at_EN = np.diff(found_EN, axis=1, prepend=0)
    exact_E = [value_TE[counted_TE[:, e], e].mean() for e in range(3)]
    np.testing.assert_allclose(at_EN @ mark_N / found_EN[:, -1], exact_E, rtol=1e-5)


def test_values_outside_count_at_the_ends():
    np.testing.assert_allclose(below([[-3.0], [0.0], [1.0], [7.0]], marks=3), [[2, 2, 4]])


@pytest.mark.parametrize("share", [0.05, 0.5, 2 / 3, 0.9])
def test_quantiles_have_no_bias_against_float64(share):
    """Over 60 drawn batches: each nearer than half of the way between two marks, and their mean
    error a tenth of it."""
    rng = np.random.default_rng(1)
    value_TE = 1 / (1 + np.exp(-rng.normal(size=(4096, 60)) - np.linspace(-2, 2, 60)))
    exact_E = np.quantile(value_TE, share, axis=0, method="hazen")
    error_E = np.asarray(read_quantile(below(value_TE), share), np.float64) - exact_E
    assert np.abs(error_E).max() < STEP / 2
    assert abs(error_E.mean()) < STEP / 20


@pytest.mark.parametrize("share", [0.25, 0.5, 0.6])
def test_far_values_are_those_of_hazen(share):
    """Few values far apart: between two of them numpy interpolates, and so do we."""
    values = [0.05, 0.15, 0.35, 0.5, 0.9, 0.95]
    expected = np.quantile(values, share, method="hazen")
    assert quantile(values, share) == pytest.approx(expected, abs=STEP)
    assert quantile([], share) == 0


def test_a_value_at_a_mark_that_moves_by_its_last_bit():
    """With counts in bins one hopped into the next: a whole count, and up to a bin in the quantile.
    The last bits on either side of a mark and of the middle of two; the median of two values that
    are far apart, where the distribution is flat."""
    rest = [0.1, 0.12, 0.8, 0.9]
    for place in (300, 512, 511.5, 700.5, 1022.5):
        value = np.float32(place * STEP)
        moved = [np.nextafter(value, np.float32(end)) for end in (-1, 2)]
        for share in (0.3, 0.5, 0.7):
            read = [quantile([*rest, x], share) for x in (*moved, value)]
            assert max(read) - min(read) < 3e-7
        counts = [np.asarray(below(np.reshape([*rest, x], (-1, 1)))) for x in (*moved, value)]
        assert np.abs(counts[0] - counts[1]).max() < 3e-4  # 2 bits of it times 1023
        assert np.linalg.norm(counts[0] - counts[1]) < 1e-5 * np.linalg.norm(counts[2])
    flat = [0.1, 0.2, 0.7, 0.8]
    for last in (np.nextafter(np.float32(0.8), np.float32(2)), np.float32(0.8)):
        assert quantile([*flat[:3], last], 0.5) == pytest.approx(0.45, abs=STEP)


@pytest.mark.parametrize("share", [0.4, 0.75])
def test_the_quantile_moves_no_further_than_the_values(share):
    rng = np.random.default_rng(2)
    value_TE = rng.random((64, 40)).astype(np.float32) ** 2
    for distance in (1e-3, 1e-5, 1e-6):
        moved_TE = np.clip(value_TE + distance * rng.uniform(-1, 1, value_TE.shape), 0, 1)
        before_E, after_E = (read_quantile(below(x), share) for x in (value_TE, moved_TE))
        assert (
            np.abs(np.asarray(after_E) - np.asarray(before_E)).max() < distance + 2e-6
        )  # sums of 64


@pytest.mark.parametrize("tokens", [1e6, 3e7])
def test_counts_that_float32_cannot_tell_apart(tokens):
    """Sums over a large batch: the last bit of a sum is more than one count."""
    rng = np.random.default_rng(3)
    below_EN = jnp.cumsum(jnp.asarray(rng.random((2, MARKS)), jnp.float32), axis=1)
    few = read_quantile(below_EN, 0.7)
    many = read_quantile(below_EN * (tokens / float(below_EN[0, -1])), 0.7)
    np.testing.assert_allclose(few, many, atol=STEP / 2)
    assert np.all(np.asarray(many) > 0.6)


def test_sums_over_groups_are_those_of_all_tokens():
    """Of both routers, over four groups of their own padding, and of the state they lead to."""
    E = 6
    for router in (QuantileBalancing(k=2), ExpertThreshold()):
        x_TD = 2 * jax.random.normal(jax.random.key(0), (64, E))
        valid_T = jax.random.uniform(jax.random.key(1), (64,)) < 0.8
        params, state = {"kernel": jnp.eye(E)}, router.state(E)

        @jax.jit
        def sums(x_TD, valid_T, router=router, params=params, state=state):
            return router.route(params, state, inputs(x_TD, valid_T=valid_T, train=True))[1]

        whole = sums(x_TD, valid_T)
        parts = [
            sums(*part) for part in zip(*(jnp.split(x, 4) for x in (x_TD, valid_T)), strict=True)
        ]
        added = add_sums(add_sums(*parts[:2]), add_sums(*parts[2:]))
        for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(added), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
        (name,) = state
        np.testing.assert_allclose(
            router.update(state, whole)[name], router.update(state, added)[name], atol=1e-6
        )


def test_margins_are_those_to_the_cutoff():
    """Three tokens by hand: k = 1, so the cutoff is the second largest with the bias."""
    score_TE = np.array([[0.9, 0.5, 0.2], [0.3, 0.4, 0.1], [0.6, 0.6, 0.9]])
    by_TE = score_TE + np.array([0.0, 0.0, 0.5])
    cutoff_T = [0.7, 0.4, 0.6]
    valid_T = jnp.asarray([True, True, False])
    found_EN = margins_below(
        jnp.asarray(score_TE, jnp.float32), jnp.asarray(by_TE, jnp.float32), 1, valid_T
    )
    margin_TE = score_TE - np.reshape(cutoff_T, (3, 1))
    expected_EN = below((margin_TE + 1) / 2, np.asarray(valid_T)[:, None] & np.ones((3, 3), bool))
    np.testing.assert_allclose(found_EN, expected_EN, atol=2e-3)
