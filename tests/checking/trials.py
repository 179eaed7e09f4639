"""Runs of the check for its tests."""

from __future__ import annotations

import numpy as np

from moe_jax.checking.trial import StepRecord, Trial


def trial(**changes):
    step = {
        "numbers": {"loss": 4.0},
        "counts": {"dropped": np.array([3, 4])},
        "sums": {"prob_E": np.array([[1.0, 2.0]])},
        "gradients": {"w": np.array([3.0, 4.0]), "router": np.array([1e-9, 0.0])},
        "router_state": {"bias": np.array([0.01])},
    }
    params = changes.pop("params", {"w": np.array([1.0, 1.5])})
    record = StepRecord(**{**step, **changes})
    return Trial(steps=(record,), start={"w": np.array([1.0, 1.0])}, params=params)
