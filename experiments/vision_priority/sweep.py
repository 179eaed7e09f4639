"""A V-MoE on images, evaluated at falling capacity under two orders of service."""

from __future__ import annotations

import functools
from typing import Any

from experiments import capacity
from experiments.card import Card, Scale
from moe_jax.training.experiment import Experiment

CONFIG = "configs/fashion.py"
FACTORS = (1.05, 0.8, 0.6, 0.4, 0.3, 0.2)
FEWER = {"evaluation.every": 0, "logging.probe_every": 0}


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    return {"v_moe": {"moe.router.drop_order": "choice_major"}}


metric = functools.partial(capacity.name_of, "accuracy")

CARD = Card(
    title="Batch priority on images",
    arms=arms,
    scales={
        # 2,560 of the pictures at each factor.
        "tiny": Scale(config=CONFIG, seeds=3, overrides={**FEWER, "evaluation.batches": 20}),
        "small": Scale(config=CONFIG, seeds=5, overrides={**FEWER, "steps": 20_000}),
    },
    measure=functools.partial(
        capacity.at_falling_capacity, factors=FACTORS, metric="accuracy", what="accuracy"
    ),
    figure=functools.partial(
        capacity.figure,
        arm="v_moe",
        factors=FACTORS,
        what="accuracy",
        title="Accuracy at falling capacity",
    ),
    shown=tuple(metric(order, factor) for order in capacity.ORDERS for factor in FACTORS),
)
