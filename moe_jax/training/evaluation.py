"""Evaluation: sums over a split, added up on the host, and the metrics made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from moe_jax.training.build import Program
from moe_jax.training.state import TrainState
from moe_jax.training.step import BatchSums, layer_metrics

# Where layers differ, the worst is what matters for these; the mean for the others.
WORST = frozenset({"max_violation"})


def evaluate(
    program: Program, state: TrainState, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """Metrics over all batches, named as in metrics.jsonl. Of each batch a process gives its
    `program.local_rows`.

    Sums are added in float64 and int64 on the host, so that max_violation and the like are those
    of the whole evaluation, not a mean over batches.
    """
    total: BatchSums | None = None
    knobs = program.knobs(int(state.step))
    size = program.eval_batch_size
    for number, raw in enumerate(batches):
        batch = program.put(raw, first_row=number * size, batch_size=size)
        sums = program.eval_step(state.params, state.router_state, batch, knobs)
        wide = jax.tree.map(_widen, jax.device_get(sums))
        total = wide if total is None else jax.tree.map(np.add, total, wide)
    if total is None:
        raise ValueError("an evaluation needs at least one batch")
    metrics: dict[str, Any] = dict(program.step.task.metrics(vars(total.task)))
    factor = program.experiment.evaluation.capacity_factor
    metrics |= routing_report(program, jax.device_get(layer_metrics(_narrow(total))), factor)
    metrics |= load_report(program, total)
    return metrics


def _widen(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.int64 if np.issubdtype(leaf.dtype, np.integer) else np.float64)


def _narrow(sums: BatchSums) -> BatchSums:
    """Types that a device takes; metrics are ratios, so float32 counts are exact enough."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), sums)


def routing_report(
    program: Program, layers: Mapping[str, np.ndarray], capacity_factor: float | None
) -> dict[str, float]:
    """`moe/NAME` over all sparse layers and `moe/layer_07/NAME` of each."""
    report: dict[str, float] = {}
    if not layers:
        return report
    for name, values in layers.items():
        if name == "capacity_utilization" and capacity_factor is None:
            continue
        overall = np.max(values) if name in WORST else np.mean(values)
        report[f"moe/{name}"] = float(overall)
        for layer, value in zip(program.layout.moe_layers, values, strict=True):
            report[f"moe/layer_{layer:02d}/{name}"] = float(value)
    if capacity_factor is not None:
        report["moe/capacity_factor"] = float(capacity_factor)
    return report


def load_report(program: Program, sums: BatchSums) -> dict[str, list[float]]:
    """`moe/layer_07/load`: share of the wanted assignments of each expert, before drops."""
    if sums.routing is None:
        return {}
    wanted_LE = np.asarray(sums.routing.wanted_E, np.float64)
    share_LE = wanted_LE / np.maximum(wanted_LE.sum(axis=1, keepdims=True), 1)
    return {
        f"moe/layer_{layer:02d}/load": [float(x) for x in share_E]
        for layer, share_E in zip(program.layout.moe_layers, share_LE, strict=True)
    }
