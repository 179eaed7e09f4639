"""Drops by the place in the row, where a mixture of depths lets only some tokens take part."""

from __future__ import annotations

import numpy as np

from moe_jax.nn.depth import MixtureOfDepths
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.routing import Mixtral
from moe_jax.routing.types import ROW_PARTS
from tests.nn.depth_layer import SEGMENTS, B, E, S, inputs, make, run


def test_places_are_those_of_the_row_and_not_among_the_chosen():
    """Eight places of rows of eight tokens, of which four take part; capacity for half."""
    assert ROW_PARTS == S
    moe = MoEConfig(num_experts=E, expert_dim=6, router=Mixtral(k=2), matmul="reference")
    _, graph, params = make(MixtureOfDepths(every=1, first=0, capacity=0.5), moe)
    x_BSD = inputs()
    score_BS = x_BSD @ np.asarray(params["router"]["kernel"][...])[:, 0]
    _, report, _ = run(graph, params, x_BSD, capacity_factor=0.5)
    wanted_BN, dropped_BN = (
        np.asarray(x).reshape(B, ROW_PARTS)
        for x in (report.moe.traffic.wanted_N, report.moe.traffic.dropped_N)
    )
    for row in range(B):
        valid = SEGMENTS[row] > 0
        order = np.argsort(np.where(valid, -score_BS[row], np.inf), kind="stable")[: S // 2]
        chosen = np.isin(np.arange(S), order) & valid
        np.testing.assert_array_equal(wanted_BN[row], 2 * chosen)
        # Token-major: an expert has one place, so the first of the chosen loses nothing.
        assert dropped_BN[row][np.flatnonzero(chosen)[0]] == 0
        assert np.all(dropped_BN[row] <= 2 * chosen)
    assert dropped_BN.sum() > 0
