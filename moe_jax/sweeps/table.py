"""What came out of a sweep: a row a point, and a row an arm over its seeds."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_jax.analysis.read_run import SPLITS, read_metrics
from moe_jax.config.errors import UserError
from moe_jax.sweeps.engine import OUTCOME, is_done
from moe_jax.sweeps.matching import counts_of, least_dropped, training_tokens, used_flops
from moe_jax.sweeps.points import SweepPoint
from moe_jax.sweeps.space import SEED
from moe_jax.sweeps.statistics import Interval, paired, student

METRICS = ("bits_per_byte", "cross_entropy", "accuracy", "loss")  # the first that is there
HIGHER_IS_BETTER = ("accuracy",)
SPEED = ("step_time_s", "tokens_per_s", "mfu")  # of the machine, not of the point
MEASURES = "measures.json"  # what an experiment measured beyond the run's own metrics


@dataclass(frozen=True)
class Row:
    """A point with its costs and, where it is done, its last evaluation and further measures.

    costs: parameters, active, flops_per_token, training_flops, used_flops: all of the training,
    the last without dropped assignments, as measured over its logged steps.
    """

    point: SweepPoint
    done: bool
    costs: Mapping[str, float]
    metrics: Mapping[str, float]

    def value(self, name: str) -> float:
        """nan where it is not there."""
        return float(self.metrics.get(name, self.costs.get(name, math.nan)))


def read_row(point: SweepPoint, folder: Path) -> Row:
    done = is_done(folder)
    lines = read_metrics(folder) if done else []
    metrics = final_metrics(lines, point.experiment.steps)
    if done and (measures := folder / MEASURES).is_file():
        metrics |= json.loads(measures.read_text("utf-8"))
    dropped = [
        line["moe/dropped_fraction"]
        for line in lines
        if line.get("split") == "train" and "moe/dropped_fraction" in line
    ]
    share = sum(dropped) / len(dropped) if dropped else least_dropped(point.experiment)
    return Row(point, done, costs_of(point, share), metrics)


def costs_of(point: SweepPoint, dropped: float) -> dict[str, float]:
    counts, tokens = counts_of(point.experiment), training_tokens(point.experiment)
    return {
        "parameters": counts.total,
        "active": counts.active,
        "tokens": tokens,
        "flops_per_token": counts.flops_per_token,
        "training_flops": counts.flops_per_token * tokens,
        "used_flops": used_flops(point.experiment, dropped) * tokens,
    }


def final_metrics(lines: Sequence[Mapping[str, Any]], step: int) -> dict[str, float]:
    """The evaluation at that step: its single numbers that belong to the whole model."""
    last = [line for line in lines if line["step"] == step and line.get("split") == SPLITS[1]]
    return {
        name: float(value)
        for name, value in (last[-1] if last else {}).items()
        if isinstance(value, int | float)
        and not name.startswith("moe/layer_")
        and name not in ("step", *SPEED)
    }


def evaluated(folder: Path, step: int) -> bool:
    """Whether the run in this folder has its evaluation at `step`."""
    try:
        return bool(final_metrics(read_metrics(folder), step))
    except UserError:
        return False


def default_metric(rows: Sequence[Row]) -> str:
    """What the arms are compared by, unless something else is asked for."""
    known = {name for row in rows for name in row.metrics}
    return next((name for name in METRICS if name in known), METRICS[0])


# Over seeds


@dataclass(frozen=True)
class Arm:
    """The runs that differ only in their seed. difference: to the baseline, paired by seed."""

    name: str
    overrides: Mapping[str, Any]
    rows: tuple[Row, ...]
    value: Interval | None
    difference: Interval | None


def arms_of(rows: Sequence[Row], metric: str, baseline: str | None = None) -> list[Arm]:
    """The arms in their order, of the points that are done. baseline: an arm's name; default the
    first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.point.arm, []).append(row)
    baseline = next(iter(groups)) if baseline is None else baseline
    values = {name: _by_seed(group, metric) for name, group in groups.items()}
    found = []
    for name, group in groups.items():
        pairs = paired(values[name], values[baseline]) if name != baseline else []
        overrides = {k: v for k, v in group[0].point.overrides.items() if k != SEED}
        own = list(values[name].values())
        found.append(
            Arm(
                name=name,
                overrides=overrides,
                rows=tuple(group),
                value=student(own) if own else None,
                difference=student(pairs) if pairs else None,
            )
        )
    return found


def _by_seed(rows: Sequence[Row], metric: str) -> dict[int, float]:
    return {row.point.seed: row.value(metric) for row in rows if math.isfinite(row.value(metric))}


# Files


def to_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """results.json: nothing in it depends on the machine's speed or on how often it was stopped."""
    return [
        {
            "point": row.point.name,
            "arm": row.point.arm,
            "seed": row.point.seed,
            "done": row.done,
            "overrides": row.point.overrides,
            **row.costs,
            **row.metrics,
        }
        for row in rows
    ]


def to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """One column a name, overrides by their paths."""
    flat = [
        {**{k: v for k, v in record.items() if k != "overrides"}, **record.get("overrides", {})}
        for record in records
    ]
    columns = list(dict.fromkeys(name for record in flat for name in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def arm_records(arms: Sequence[Arm], metric: str) -> list[dict[str, Any]]:
    """arms.csv: mean, 95 % interval (Student) and paired difference of a metric."""
    records = []
    for arm in arms:
        record: dict[str, Any] = {"arm": arm.name, "overrides": arm.overrides, "metric": metric}
        for prefix, interval in (("", arm.value), ("difference_", arm.difference)):
            if interval is not None:
                record |= {
                    f"{prefix}mean": interval.mean,
                    f"{prefix}low": interval.low,
                    f"{prefix}high": interval.high,
                    f"{prefix}n": interval.n,
                }
        records.append(record)
    return records


def seconds_of(folder: Path) -> float | None:
    """How long the last start of a finished point took."""
    file = folder / OUTCOME
    return json.loads(file.read_text("utf-8"))["seconds"] if file.is_file() else None
