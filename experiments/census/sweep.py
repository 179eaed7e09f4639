"""Two targets of a census by gates over one pool of experts, by one network, and by two."""

from __future__ import annotations

from typing import Any

from experiments.card import Card, Scale
from moe_jax.training.experiment import Experiment

CONFIG = "configs/census.py"
AT_THE_END: dict[str, Any] = {
    "evaluation.split": "test",
    "evaluation.every": 0,
    "logging.load_every": 0,
    "logging.probe_every": 0,
}


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    return {
        "mmoe": {},
        "shared bottom": {"model.sharing.kind": "shared_bottom", "moe.every": 0},
        "single task": {"model.sharing.kind": "single", "moe.every": 0},
    }


def area(target: str) -> str:
    return f"auc/{target}"


CARD = Card(
    title="A gate for each target",
    arms=arms,
    scales={
        "tiny": Scale(config=CONFIG, seeds=3, overrides={**AT_THE_END, "steps": 800}),
        "small": Scale(config=CONFIG, seeds=8, overrides={**AT_THE_END, "steps": 2000}),
        "pod": Scale(
            config=CONFIG,
            seeds=30,
            overrides={**AT_THE_END, "steps": 4000, "mesh.data": 4},
            topology="v5e:2x2",
        ),
    },
    shown=("auc", "cross_entropy", "parameters", "flops_per_token"),
)
