"""One expert a token or two, with equally many slots in each expert.

Capacity is Mesh TensorFlow's, floor(factor T / E) whatever k is: at factor 1.0 the second choices
find room only where first choices left some, and both arms compute as much.
"""

from __future__ import annotations

from typing import Any

from experiments.card import Card
from experiments.scales import pod, small, tiny
from moe_jax.training.experiment import Experiment

FACTORS = (1.0, 1.25, 2.0)
ROUTERS = {1: "switch", 2: "gshard"}


def arm(k: int, factor: float) -> str:
    return f"k={k}, factor {factor:g}"


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    return {
        arm(k, factor): {
            "moe.router.kind": kind,
            "moe.losses.load_balance.coefficient": 0.01,
            "moe.capacity_factor": factor,
            "moe.capacity_rounding": "floor_without_k",
            "evaluation.capacity_factor": 2.0,
        }
        for factor in FACTORS
        for k, kind in ROUTERS.items()
    }


CARD = Card(
    title="k = 1 or k = 2",
    arms=arms,
    first_seed=20,
    scales={
        "tiny": tiny(5),
        "small": small(5),
        "pod": pod("configs/switch_base_like.py", "v5p:4x4x4", 1),
    },
    shown=("bits_per_byte", "moe/dropped_fraction", "moe/max_violation"),
)
