"""A V-MoE on images, evaluated at falling capacity under two orders of service."""

from __future__ import annotations

import functools

from experiments import capacity
from experiments.card import Scale

CONFIG = "configs/fashion.py"
FEWER = {"evaluation.every": 0, "logging.probe_every": 0}

metric = functools.partial(capacity.name_of, "accuracy")

CARD = capacity.priority_card(
    title="Batch priority on images",
    arm="v_moe",
    overrides={"moe.router.drop_order": "choice_major"},
    scales={
        # 2,560 of the pictures at each factor.
        "tiny": Scale(config=CONFIG, seeds=3, overrides={**FEWER, "evaluation.batches": 20}),
        "small": Scale(config=CONFIG, seeds=5, overrides={**FEWER, "steps": 20_000}),
    },
    factors=(1.05, 0.8, 0.6, 0.4, 0.3, 0.2),
    metric="accuracy",
    what="accuracy",
    heading="Accuracy at falling capacity",
)
