"""The probe of a trained run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import moe_jax
from moe_jax.training.probe import Probe


def test_the_probe_keeps_the_routes_of_its_rows(trained):
    """5 rows at the start of a batch of 16, whose others are empty: the routes that the rows have
    in a full batch, and no churn from one call to the next."""
    run = moe_jax.load(trained)
    probe = Probe(run.program, run.rows)
    unseen = np.full(run.program.probe_shape, -1, np.int32)
    state, _ = probe(replace(run.state, probe=unseen))
    routes = run.route(next(run.batches(1)))
    expected = np.stack([routes[layer].expert_BSK for layer in sorted(routes)])
    assert run.program.eval_batch_size > 5
    assert state.probe.shape[1] == 5
    # Which of two equal experts comes first is no matter.
    given, wanted = (np.sort(x, axis=-1) for x in (state.probe, expected[:, :5]))
    real = np.stack([run.rows[i]["segments"][:-1] > 0 for i in range(5)])
    np.testing.assert_array_equal(given[:, real], wanted[:, real])
    _, metrics = probe(state)
    assert metrics["moe/probe/churn"] == 0 and metrics["moe/probe/overlap"] == 1
