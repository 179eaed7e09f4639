"""The least cost, as scipy finds it; padding, numbers that are none, meshes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.optimize import linear_sum_assignment

from moe_jax.ops.matching import matched

found_by = jax.jit(matched)


def drawn(Q: int, N: int, seed: int = 0, B: int = 16):
    random = np.random.default_rng(seed)
    cost = random.normal(size=(B, Q, N)).astype(np.float32)
    cost[B // 2 :] = np.round(2 * cost[B // 2 :])  # ties
    count = random.integers(0, N + 1, B)
    count[:2] = 0, N
    there = random.permuted(np.arange(N)[None] < count[:, None], axis=1)
    return cost, there


@pytest.mark.parametrize(("Q", "N"), [(1, 1), (5, 5), (30, 6), (36, 24), (100, 3)])
def test_the_cost_is_that_of_scipy(Q, N):
    cost, there = drawn(Q, N)
    found = np.asarray(found_by(cost, there))
    for cost_QN, there_N, found_N in zip(cost, there, found, strict=True):
        real = found_N[there_N]
        assert len(set(real)) == len(real) and (real < Q).all() and (found_N[~there_N] == Q).all()
        rows, columns = linear_sum_assignment(cost_QN[:, there_N])
        ours, best = (
            cost_QN[:, there_N][np.asarray(r, int), np.asarray(c, int)].sum()
            for r, c in ((real, np.arange(len(real))), (rows, columns))
        )
        assert ours == pytest.approx(best, abs=1e-4)


def test_what_stands_in_padding_changes_nothing():
    cost, there = drawn(12, 5, seed=1)
    other = np.where(there[:, None], cost, -1e9).astype(np.float32)
    np.testing.assert_array_equal(found_by(cost, there), found_by(other, there))


def test_costs_that_are_no_numbers_end():
    cost, there = drawn(8, 4, seed=2)
    cost[1] = np.abs(cost[1]) + 1  # so that no number at all would be the least
    cost[0], cost[1, 2], cost[2, :, 1], cost[3, 0, 0] = np.nan, np.nan, np.inf, -np.inf
    there[:] = True
    found = np.asarray(found_by(cost, there))
    assert all(len(set(row)) == 4 for row in found.tolist())
    rows, columns = linear_sum_assignment(cost[4])
    assert found[4][columns].tolist() == rows.tolist()
    assert 2 not in found[1]  # a prediction without numbers takes nothing from the others


def test_it_is_the_same_on_a_mesh():
    cost, there = drawn(12, 5, seed=3)
    rows = NamedSharding(Mesh(np.asarray(jax.devices()), ("rows",)), PartitionSpec("rows"))
    split = found_by(*(jax.device_put(x, rows) for x in (cost, there)))
    np.testing.assert_array_equal(split, found_by(cost, there))


def test_it_has_no_gradient_and_needs_enough_predictions():
    cost, there = (jnp.asarray(x) for x in drawn(4, 3))

    def total(cost):
        taken = jnp.minimum(matched(cost, there), 3)
        return jnp.sum(jnp.take_along_axis(cost, taken[:, None], axis=1))

    assert np.asarray(jax.grad(total)(cost)).any()  # through what is taken
    with pytest.raises(ValueError, match="2 predictions cannot be matched with 3 objects"):
        matched(jnp.zeros((2, 3)), jnp.ones(3, bool))
