"""One trained model, evaluated at falling capacity under two orders of service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.card import Card, Scale
from experiments.figures import curves
from moe_jax.notebook import LoadedRun, load

ORDERS = {"position": "choice_major", "priority": "batch_priority"}


def name_of(what: str, order: str, factor: float) -> str:
    return f"{what}, {order}, {factor:g}"


def at_falling_capacity(
    run: LoadedRun, factors: Sequence[float], metric: str, what: str
) -> dict[str, float]:
    """A metric at each factor, when experts serve their tokens by place, or by the router's
    probability; and the share of assignments that were dropped. what: the metric in names."""
    found = {}
    for order, drop_order in ORDERS.items():
        for factor in factors:
            changed = load(
                run.workdir,
                overrides={
                    "moe.router.drop_order": drop_order,
                    "evaluation.capacity_factor": factor,
                },
            )
            metrics = changed.evaluate()
            found[name_of(what, order, factor)] = metrics[metric]
            found[name_of("dropped", order, factor)] = metrics["moe/dropped_fraction"]
    return found


def priority_card(
    *,
    title: str,
    arm: str,
    overrides: Mapping[str, Any],
    scales: Mapping[str, Scale],
    factors: Sequence[float],
    metric: str,
    what: str,
    heading: str,
) -> Card:
    """A card of one arm, which is trained and then evaluated under both orders. heading: of the
    figure, the metric over the factor, a line an order."""

    def figure(runs: Sequence[Mapping[str, Any]]) -> str:
        own = [run for run in runs if run["arm"] == arm]
        series = {
            order: [(f, [run.get(name_of(what, order, f)) for run in own]) for f in sorted(factors)]
            for order in ORDERS
        }
        return curves(series, heading, "capacity factor of the evaluation")

    return Card(
        title=title,
        arms=lambda base: {arm: overrides},
        scales=scales,
        measure=lambda run: at_falling_capacity(run, factors, metric, what),
        figure=figure,
        shown=tuple(name_of(what, order, factor) for order in ORDERS for factor in factors),
    )
