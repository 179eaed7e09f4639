"""Intervals against scipy's and against coverage that is counted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from moe_jax.sweeps.statistics import bootstrap, cautious, paired, student


def test_student_is_scipys_interval():
    x = [0.3, -0.1, 0.4, 0.25]
    found = student(x)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(x), scale=stats.sem(x))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(np.mean(x)) and found.n == 4


def test_the_bootstrap_is_scipys_for_many_values():
    x = np.random.default_rng(0).normal(1, 2, 200)
    found = bootstrap(x)
    theirs = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=10_000, rng=1)
    low, high = theirs.confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)
    assert bootstrap(x) == found  # the same every time: results.md must not change by itself


def test_the_cautious_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(2)
    for n in (3, 4, 5):
        inside = [(c := cautious(random.normal(0, 1, n))).low <= 0 <= c.high for _ in range(400)]
        assert np.mean(inside) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 400)


def test_one_value_says_nothing_about_its_spread():
    assert student([1.0]).low == -np.inf and bootstrap([1.0]).high == np.inf


def test_pairs_are_of_the_same_seed():
    assert paired({3: 5.0, 1: 2.0, 9: 0.0}, {4: 7.0, 1: 1.0, 3: 2.0}) == [1.0, 3.0]
