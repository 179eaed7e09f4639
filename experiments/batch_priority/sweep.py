"""One model, evaluated at falling capacity under two orders of service."""

from __future__ import annotations

import functools
from typing import Any

from experiments import capacity
from experiments.card import Card
from experiments.scales import pod, small, tiny
from moe_jax.training.experiment import Experiment

FACTORS = (1.5, 1.0, 0.75, 0.5, 0.35, 0.25)


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    return {
        "v_moe": {
            "moe.router.kind": "v_moe",
            "moe.router.k": 1,
            "moe.capacity_factor": 1.5,
            "moe.losses.importance.coefficient": 0.005,
            "moe.losses.load.coefficient": 0.005,
        }
    }


metric = functools.partial(capacity.name_of, "bits")

CARD = Card(
    title="Batch priority",
    arms=arms,
    scales={
        "tiny": tiny(4),
        "small": small(5),
        "pod": pod("configs/switch_base_like.py", "v5p:4x4x4", 1),
    },
    measure=functools.partial(
        capacity.at_falling_capacity, factors=FACTORS, metric="bits_per_byte", what="bits"
    ),
    figure=functools.partial(
        capacity.figure,
        arm="v_moe",
        factors=FACTORS,
        what="bits",
        title="Bits per byte at falling capacity",
    ),
    shown=tuple(metric(order, factor) for order in capacity.ORDERS for factor in FACTORS),
)
