"""Evaluation: sums over a split, added up on the host, and the metrics made of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.typing import ArrayLike

from moe_jax.config.activity import counted
from moe_jax.config.json_files import JsonObject
from moe_jax.routing.plan import add_sums
from moe_jax.routing.types import Recorded, Sums, Traffic
from moe_jax.training.build import Program
from moe_jax.training.state import TrainState
from moe_jax.training.step import VALID, BatchSums

T = TypeVar("T")

# Where layers differ, the worst is what matters for these; the mean for the others.
WORST = frozenset({"max_violation", "largest_logit"})


def evaluate(
    program: Program,
    state: TrainState,
    batches: Iterable[Mapping[str, np.ndarray]],
    recorded: Iterable[Recorded] | None = None,
) -> JsonObject:
    """Metrics over all batches, named as in metrics.jsonl. Of each batch a process gives its
    `program.local_rows`. recorded: the routes of each batch, for a replay.

    Sums are added in float64 and int64 on the host, so that max_violation and the like are those
    of the whole evaluation, not a mean over batches.
    """
    total: BatchSums | None = None
    by_row: list[dict[str, np.ndarray]] = []
    scalars = program.scalars(int(state.step))
    size = program.eval_batch_size
    routes: Iterable[Recorded | None] = itertools.repeat(None) if recorded is None else recorded
    raws = counted_batches("evaluating", batches)
    for number, (raw, replayed) in enumerate(zip(raws, routes, strict=False)):
        batch = program.put(raw, first_row=number * size, batch_size=size)
        found = program.eval_step(state.params, state.router_state, batch, scalars, replayed)
        sums, rows = jax.device_get(found)
        if number * size < program.written:
            some = program.write_step(state.params, state.router_state, batch, scalars)
            rows = {**rows, **_first(jax.device_get(some), program.written - number * size)}
        if rows:
            by_row.append({name: leaf[rows[VALID]] for name, leaf in rows.items()})
        wide = jax.tree.map(_widen, sums)
        total = wide if total is None else add_sums(total, wide)
    if total is None:
        raise ValueError("an evaluation needs at least one batch")
    # The first rows alone have what is written of them.
    gathered = {
        name: np.concatenate([rows[name] for rows in by_row if name in rows])
        for name in (by_row or [{}])[0]
    }
    metrics: JsonObject = dict(program.step.task.metrics(total.task, gathered))
    factor = program.experiment.evaluation.capacity_factor
    layers = program.step.layer_metrics(_narrow(total), state.router_state)
    metrics |= routing_report(program, jax.device_get(layers), factor)
    metrics |= load_report(program, total)
    metrics |= depth_report(program, total)
    return metrics


def _first(rows: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    return {name: leaf[:count] for name, leaf in rows.items()}


def counted_batches(what: str, batches: Iterable[T]) -> Iterator[T]:
    """The batches; says, where that takes long, `what` and how many are done."""
    return counted(what, batches, "batches", "the first compiles")


def _widen(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.int64 if np.issubdtype(leaf.dtype, np.integer) else np.float64)


def _narrow(sums: BatchSums) -> BatchSums:
    """Types that a device takes; metrics are ratios, so float32 counts are exact enough."""
    narrow: BatchSums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), sums)
    return narrow


def routing_report(
    program: Program, layers: Mapping[str, np.ndarray], capacity_factor: float | None
) -> dict[str, float]:
    """`moe/NAME` over all sparse layers and `moe/layer_07/NAME` of each; of several gates over all
    of them, and of each `moe/gate_NAME/...` and `moe/layer_07/gate_NAME/...`."""
    report: dict[str, float] = {}
    if not layers:
        return report
    for name, values in layers.items():
        if name == "capacity_utilization" and capacity_factor is None:
            continue
        report |= by_layer(program, name, values, worst=name in WORST)
    if capacity_factor is not None:
        report["moe/capacity_factor"] = float(capacity_factor)
    return report


def by_layer(
    program: Program, name: str, values_L: np.ndarray, worst: bool = False
) -> dict[str, float]:
    """A metric of the sparse layers, (L,) or, of K gates, (L K,), by the names of both: the mean,
    or the worst. Of a shared gate nothing is told in the last level, where nothing is asked of it.
    """
    gates, layers = program.gates, program.layout.moe_layers

    def over(values: np.ndarray) -> float:
        return float(values.max() if worst else values.mean())

    value_LK = np.asarray(values_L).reshape(len(layers), -1)
    asked_LK = np.ones_like(value_LK, bool)
    if program.experiment.moe.own_experts:
        asked_LK[-1, -1] = False
    report = {f"moe/{name}": over(value_LK[asked_LK])}
    for number, gate in enumerate(gates):
        if (asked_L := asked_LK[:, number]).any():
            report[f"moe/gate_{gate}/{name}"] = over(value_LK[asked_L, number])
    for layer, value_K, asked_K in zip(layers, value_LK, asked_LK, strict=True):
        report[f"moe/layer_{layer:02d}/{name}"] = over(value_K[asked_K])
        for gate, value, asked in zip(gates, value_K, asked_K, strict=bool(gates)):
            if asked:
                report[f"moe/layer_{layer:02d}/gate_{gate}/{name}"] = float(value)
    return report


def depth_report(program: Program, sums: BatchSums) -> dict[str, float]:
    """Of layers with a mixture of depths, `depth/NAME` over all and `depth/layer_07/NAME`, as
    `DepthReport.metrics` has them."""
    if sums.depth is None:
        return {}
    found = sums.depth.metrics()
    report = {f"depth/{name}": float(np.mean(values)) for name, values in found.items()}
    for name, values in found.items():
        for layer, value in zip(program.layout.depth_layers, values, strict=True):
            report[f"depth/layer_{layer:02d}/{name}"] = float(value)
    return report


def load_report(program: Program, sums: BatchSums) -> dict[str, list[float]]:
    """What is a list for each sparse layer, `moe/layer_07/NAME`, of several gates over all of them
    and, `moe/layer_07/gate_NAME/...`, of each:

    load                 share of the wanted assignments of each expert, before drops
    gate_mass            share of the gates' sum of each expert
    dropped_by_rank      dropped / wanted among first, second, ... choices
    dropped_by_position  the same by the place in the row, in eighths
    experts_histogram    share of tokens that got 0, 1, 2, ... experts
    """
    if sums.routing is None or sums.traffic is None:
        return {}
    routing, traffic = sums.routing, sums.traffic
    gates, K = program.gates, program.experiment.moe.gates
    summed_routing: Sums = jax.tree.map(lambda leaf: _over_gates(leaf, K), routing)
    summed_traffic: Traffic = jax.tree.map(lambda leaf: _over_gates(leaf, K), traffic)
    report: dict[str, list[float]] = {}
    for number, layer in enumerate(program.layout.moe_layers):
        report |= _lists(f"moe/layer_{layer:02d}/", summed_routing, summed_traffic, number)
        for k, gate in enumerate(gates):
            prefix = f"moe/layer_{layer:02d}/gate_{gate}/"
            report |= _lists(prefix, routing, traffic, number * K + k)
    return report


def _over_gates(leaf: np.ndarray, K: int) -> np.ndarray:
    summed: np.ndarray = leaf.reshape(-1, K, *leaf.shape[1:]).sum(axis=1)
    return summed


def _lists(prefix: str, routing: Sums, traffic: Traffic, row: int) -> dict[str, list[float]]:
    lists = {
        "load": _share(routing.wanted_E),
        "gate_mass": _share(routing.importance_E),
        "dropped_by_rank": _ratio(traffic.dropped_K, traffic.wanted_K),
        "dropped_by_position": _ratio(traffic.dropped_N, traffic.wanted_N),
        "experts_histogram": _share(traffic.served_H),
    }
    return {prefix + name: [float(x) for x in rows[row]] for name, rows in lists.items()}


def _share(x_LN: ArrayLike) -> np.ndarray:
    """Each row over its sum; rows of zeros stay so."""
    x_LN = np.asarray(x_LN, np.float64)
    return _ratio(x_LN, x_LN.sum(axis=1, keepdims=True))


def _ratio(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    """part / whole, 0 where the whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    ratio: np.ndarray = part / np.where(whole == 0, 1, whole)
    return ratio
