"""Who competes as equals: scores that differ by rounding alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from moe_jax.routing.choice import TIED, compared
from moe_jax.routing.expert_choice.expert_choice import tied_at_last


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


def rounded_twice(groups: int) -> list[np.ndarray]:
    """Scores of groups of 128 tokens that repeat 40, as two meshes may round them."""
    rng = np.random.default_rng(0)
    repeated_GT = rng.integers(0, 40, (groups, 128))
    exact_GT = np.take_along_axis(rng.random((groups, 40)), repeated_GT, axis=1)
    return [
        (exact_GT * (1 + rng.uniform(-1, 1, exact_GT.shape) * 1e-6)).astype(np.float32)
        for _ in range(2)
    ]


def test_the_order_does_not_depend_on_rounding():
    """(On a grid of 12 bits one group in five had another order.)"""
    one, other = (
        np.argsort(-np.asarray(jax.vmap(compared)(score_GT)), kind="stable")
        for score_GT in rounded_twice(400)
    )
    np.testing.assert_array_equal(one, other)


def test_an_experts_best_tokens_do_not_depend_on_rounding():
    c = 40
    best = []
    for score_ET in rounded_twice(400):
        tied_ET = tied_at_last(score_ET, c)
        best.append(np.sort(jax.lax.top_k(tied_ET, c)[1]))
        # All that are larger than the c-th, and of its equals the first.
        last_E1 = np.sort(score_ET)[:, -c, None]
        equal_ET = np.abs(score_ET - last_E1) <= TIED * last_E1
        larger_ET = (score_ET > last_E1) & ~equal_ET
        left_E1 = c - larger_ET.sum(axis=1, keepdims=True)
        taken_ET = larger_ET | (equal_ET & (np.cumsum(equal_ET, axis=1) <= left_E1))
        np.testing.assert_array_equal(best[-1], np.nonzero(taken_ET)[1].reshape(-1, c))
    np.testing.assert_array_equal(*best)


def test_in_large_groups_few_scores_are_equal_by_chance():
    score_T = np.random.default_rng(0).random(1 << 18).astype(np.float32)
    equal = len(score_T) - len(np.unique(np.asarray(compared(score_T))))
    assert equal - (len(score_T) - len(np.unique(score_T))) < 0.1 * len(score_T)
