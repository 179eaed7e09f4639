from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from moe_jax.data.order import SMALL, Order, period_of, scattered, shuffled
from tests.drawn import some


@pytest.mark.parametrize(
    "size", some([1, 2, 3, 10, 1000, SMALL, SMALL + 1, 2**18 + 1], [1, 2, 3, 10, 1000, SMALL])
)
def test_a_permutation(size):
    places = [shuffled(i, size, seed=2**32 - 1) for i in range(size)]
    assert sorted(places) == list(range(size))
    if size > 10:
        assert places != [shuffled(i, size, seed=0) for i in range(size)]
    if size > 1000:  # neighbours come apart: ranks are uncorrelated, within 4 standard deviations
        places = np.array(places)
        for other in (places[1:], np.arange(size - 1)):
            correlation = np.corrcoef(places[:-1], other)[0, 1]
            assert abs(correlation) < 4 / np.sqrt(size)


def test_the_permutations_stay_what_they_are():
    """Data orders of runs that are resumed with a newer NumPy must not change: these
    values were computed when the order was defined."""
    assert [scattered(i, 10) for i in range(10)] == SCATTERED_10
    assert [shuffled(i, 10**6, seed=7) for i in range(4)] == SHUFFLED_10_6
    order = Order(((5, 3.0), (10**5, 1.0)), seed=3)
    assert [order(g) for g in range(12)] == ORDER


SCATTERED_10 = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
SHUFFLED_10_6 = [322506, 190760, 947450, 528707]
ORDER = [3, 67, 2, 4, 0, 1, 4, 45899, 10663, 1, 2, 0]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_each_epoch_is_whole_and_another(size):
    order = Order(((size, 1.0),), seed=5)
    epochs = [[order(e * size + i) for i in range(size)] for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(size))] * 2
    if size > 1:
        assert epochs[0] != epochs[1]
        other = Order(((size, 1.0),), seed=6)
        assert epochs[1] != [other(i) for i in range(size)]  # seeds do not repeat each other


def test_without_shuffling_the_rows_come_in_their_order():
    order = Order(((3, 1.0),), seed=0, shuffle=False)
    assert [order(g) for g in range(7)] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_mixture_has_exact_shares_and_each_part_whole_epochs(shuffle):
    order = Order(((7, 0.6), (100, 0.2), (5, 0.2)), seed=1, shuffle=shuffle)
    drawn = np.array([order(g) for g in range(5 * 140)])
    parts = np.searchsorted([7, 107, 112], drawn, side="right")
    for period in parts.reshape(-1, 5):
        assert Counter(period.tolist()) == {0: 3, 1: 1, 2: 1}
    for part, (first, size) in enumerate([(0, 7), (7, 100), (107, 5)]):
        own = drawn[parts == part] - first
        whole = own[: len(own) // size * size].reshape(-1, size)
        assert len(whole) >= 1
        np.testing.assert_array_equal(np.sort(whole), np.tile(np.arange(size), (len(whole), 1)))
    # The places within a period change, so that no place of a batch is always of one part.
    assert (len({tuple(period) for period in parts.reshape(-1, 5).tolist()}) > 10) == shuffle


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1.0,), (1,)),
        ((0.25,), (1,)),
        ((0.75, 0.25), (3, 1)),
        ((7.0, 3.0), (7, 3)),
        ((0.7, 0.3), (7, 3)),
        ((1, 1, 1), (1, 1, 1)),
        ((0.999, 0.001), (999, 1)),
        ((1 / 3, 2 / 3), (1, 2)),
    ],
)
def test_the_shortest_period(weights, expected):
    assert period_of(weights) == expected


@pytest.mark.parametrize("weights", [(1.0, 1e-7), (np.pi, np.e, 1.0), (0.123456, 0.876544)])
def test_weights_without_a_short_period_are_met_nearly(weights):
    counts = np.array(period_of(weights))
    assert counts.min() >= 1
    shares = np.array(weights) / sum(weights)
    np.testing.assert_allclose(counts / counts.sum(), shares, atol=2e-4)
