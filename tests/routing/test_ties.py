"""Who competes as equals: scores that differ by rounding alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from moe_jax.routing.choice import TIED, compared


def by_loop(score_T: np.ndarray) -> np.ndarray:
    """The docstring's rule, score by score."""
    within = min(TIED, 1 / (8 * len(score_T)))
    found, last, largest = score_T.copy(), None, None
    for place in np.argsort(-score_T, kind="stable"):
        score = score_T[place]
        if last is None or last - score > within * abs(last):
            largest = score
        found[place], last = largest, score
    return found


@pytest.mark.parametrize("T", [1, 7, 300])
def test_scores_near_each_other_are_equal(T):
    rng = np.random.default_rng(T)
    score_T = rng.choice(rng.random(12), T) * (1 + rng.uniform(-1, 1, T) * 2.0**-19)
    score_T = np.asarray(score_T, np.float32)
    score_T[rng.random(T) < 0.1] = 0.0
    found = np.asarray(compared(score_T))
    np.testing.assert_array_equal(found, by_loop(score_T))
    assert len(set(found)) <= 13


def test_the_order_does_not_depend_on_rounding():
    """400 groups of repeated tokens, each scored twice with other roundings. (On a grid of 12 bits
    one group in five had another order.)"""
    rng = np.random.default_rng(0)
    exact_GT = np.take_along_axis(rng.random((400, 40)), rng.integers(0, 40, (400, 128)), axis=1)
    orders = []
    for _ in range(2):
        rounded_GT = (exact_GT * (1 + rng.uniform(-1, 1, exact_GT.shape) * 1e-6)).astype(np.float32)
        orders.append(np.argsort(-np.asarray(jax.vmap(compared)(rounded_GT)), kind="stable"))
    np.testing.assert_array_equal(*orders)


def test_in_large_groups_few_scores_are_equal_by_chance():
    score_T = np.random.default_rng(0).random(1 << 18).astype(np.float32)
    equal = len(score_T) - len(np.unique(np.asarray(compared(score_T))))
    assert equal - (len(score_T) - len(np.unique(score_T))) < 0.1 * len(score_T)
