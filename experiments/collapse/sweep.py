"""Routers with and without what is to keep their experts in use."""

from __future__ import annotations

from typing import Any

from experiments.card import Card
from experiments.scales import OLMOE_LAYOUT, pod, small, tiny
from moe_jax.notebook import LoadedRun
from moe_jax.training.experiment import Experiment

# Without noise the paper's zero initialisation would tie all experts for ever.
NO_NOISE = {"moe.router.noise": "fixed", "moe.router.noise_std": 0.0, "moe.router.init_scale": 1.0}
LOSSES = {"moe.losses.importance.coefficient": 0.1, "moe.losses.load.coefficient": 0.1}
BUSIEST = 2


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    k = base.moe.router.k  # type: ignore[attr-defined]
    noisy = {"moe.router.kind": "noisy_top_k", "moe.router.k": k}
    softmax = {"moe.router.kind": "mixtral", "moe.router.k": k}
    return {
        "neither": {**noisy, **NO_NOISE},
        "noise": noisy,
        "noise and losses": {**noisy, **LOSSES},
        "softmax": softmax,
        "softmax and balance loss": {**softmax, "moe.losses.load_balance.coefficient": 0.01},
    }


def measure(run: LoadedRun) -> dict[str, float]:
    """busiest: share of the first layer's assignments that its two busiest experts take."""
    load = sorted(run.evaluate()["moe/layer_00/load"])
    return {"busiest": float(sum(load[-BUSIEST:]) / sum(load))}


CARD = Card(
    title="Expert collapse",
    arms=arms,
    scales={
        "tiny": tiny(3),
        "small": small(5),
        "pod": pod("configs/olmoe_1b_7b.py", "v5p:4x4x8", 1, OLMOE_LAYOUT),
    },
    measure=measure,
    shown=("moe/load_cv", "bits_per_byte", "moe/max_violation", "busiest"),
)
