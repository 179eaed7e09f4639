"""Experts that choose tokens against tokens that choose experts."""

from __future__ import annotations

import math
from typing import Any

from experiments.card import Card
from experiments.scales import pod, small, tiny
from moe_jax.notebook import LoadedRun
from moe_jax.training.experiment import Experiment

LEAK_BATCHES = 8
TOKEN_CHOICE = {
    "moe.capacity_factor": 2.0,
    "evaluation.capacity_factor": 2.0,
    "moe.losses.load_balance.coefficient": 0.01,
}


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    return {
        "expert choice, c=2": {
            "moe.router.kind": "expert_choice",
            "moe.capacity_factor": None,
            "evaluation.capacity_factor": None,
        },
        "token choice, k=2": {"moe.router.kind": "gshard", **TOKEN_CHOICE},
    }


def measure(run: LoadedRun) -> dict[str, float]:
    """leak: bits per byte that a prediction gains by the true later tokens of its row, which an
    expert that chooses among all of them has seen; discounted: bits per byte without that gain."""
    metrics = run.evaluate()
    per_byte = metrics["bits_per_byte"] / (metrics["cross_entropy"] / math.log(2))
    leak = run.leak(LEAK_BATCHES)["nats"] / math.log(2) * per_byte
    return {"leak": leak, "discounted": metrics["bits_per_byte"] + leak}


CARD = Card(
    title="Expert choice",
    arms=arms,
    scales={
        "tiny": tiny(4),
        "small": small(5),
        "pod": pod("configs/switch_base_like.py", "v5p:4x4x4", 1),
    },
    measure=measure,
    shown=("bits_per_byte", "leak", "discounted", "moe/max_violation"),
)
