"""One model, evaluated at falling capacity under two orders of service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.card import Card
from experiments.figures import curves
from experiments.scales import pod, small, tiny
from moe_jax.notebook import LoadedRun, load
from moe_jax.training.experiment import Experiment

FACTORS = (1.5, 1.0, 0.75, 0.5, 0.35, 0.25)
ORDERS = {"position": "choice_major", "priority": "batch_priority"}


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


def metric(order: str, factor: float) -> str:
    return f"bits, {order}, {factor:g}"


def measure(run: LoadedRun) -> dict[str, float]:
    """Bits per byte at each factor, when experts serve their tokens by place in the row, or by
    the router's probability."""
    found = {}
    for order, drop_order in ORDERS.items():
        for factor in FACTORS:
            changed = load(
                run.workdir,
                overrides={
                    "moe.router.drop_order": drop_order,
                    "evaluation.capacity_factor": factor,
                },
            )
            metrics = changed.evaluate()
            found[metric(order, factor)] = metrics["bits_per_byte"]
            found[f"dropped, {order}, {factor:g}"] = metrics["moe/dropped_fraction"]
    return found


def figure(runs: Sequence[Mapping[str, Any]]) -> str:
    """Bits per byte over the factor, a line an order."""
    own = [run for run in runs if run["arm"] == "v_moe"]
    series = {
        order: [
            (factor, [run.get(metric(order, factor)) for run in own]) for factor in FACTORS[::-1]
        ]
        for order in ORDERS
    }
    return curves(series, "Bits per byte at falling capacity", "capacity factor of the evaluation")


CARD = Card(
    title="Batch priority",
    arms=arms,
    scales={
        "tiny": tiny(4),
        "small": small(5),
        "pod": pod("configs/switch_base_like.py", "v5p:4x4x4", 1),
    },
    measure=measure,
    figure=figure,
    shown=tuple(metric(order, factor) for order in ORDERS for factor in FACTORS),
)
