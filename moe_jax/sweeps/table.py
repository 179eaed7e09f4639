"""What came out of a sweep: a row a point, and a row an arm over its seeds."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_jax.analysis.read_run import SPLITS, read_metrics
from moe_jax.analysis.report.catalogue import ROUTING
from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json, JsonObject, read_object
from moe_jax.config.nearest import nearest
from moe_jax.sweeps.engine import OUTCOME, is_done
from moe_jax.sweeps.matching import counts_of, min_dropped, training_tokens, used_flops
from moe_jax.sweeps.points import SweepPoint, question_of
from moe_jax.sweeps.space import SEED
from moe_jax.sweeps.statistics import Interval, paired, student
from moe_jax.tasks import TASKS
from moe_jax.tasks.language_model import LanguageModel
from moe_jax.training.experiment import Experiment

OTHERS = ("cross_entropy", "accuracy", "loss")  # where a task's headlines are not there
SPEED = ("step_time_s", "tokens_per_s", "mfu")  # of the machine, not of the point
DROPPED = "moe/dropped_fraction"
MANY = 0.05  # share of skipped updates from which a run is no candidate for the best
MEASURES = "measures.json"  # what an experiment measured beyond the run's own metrics


@dataclass(frozen=True)
class Row:
    """A point with its costs and, where it is done, its last evaluation and further measures.

    costs: parameters, active, flops_per_token, training_flops, used_flops: all of the training,
    the last without dropped assignments, as measured over its logged steps. skipped: the share of
    the logged steps whose update was skipped, as loss or gradient were NaN or inf. problem: why a
    point that ended has no figures, and so is not done.
    """

    point: SweepPoint
    done: bool
    costs: Mapping[str, float]
    metrics: Mapping[str, float]
    skipped: float = 0.0
    problem: str | None = None

    def value(self, name: str) -> float:
        """nan where it is not there."""
        return float(self.metrics.get(name, self.costs.get(name, math.nan)))


def read_row(point: SweepPoint, folder: Path) -> Row:
    """The row of a point. Files that are gone or torn are its own problem, not the table's."""
    done, problem = is_done(folder), None
    lines: list[JsonObject] = []
    metrics: dict[str, float] = {}
    if done:
        try:
            lines = read_metrics(folder)
            metrics = final_metrics(lines, point.experiment.steps)
            if (measures := folder / MEASURES).is_file():
                metrics |= read_object(measures)
        except UserError as error:
            problem, metrics = f"it ended, but its figures cannot be read: {error}", {}
    train = [line for line in lines if line.get("split") == "train"]
    dropped = [line[DROPPED] for line in train if line.get(DROPPED) is not None]
    share = sum(dropped) / len(dropped) if dropped else min_dropped(point.experiment)
    return Row(
        point=point,
        done=done and problem is None,
        costs=costs_of(point, share),
        metrics=metrics,
        skipped=skipped_share(lines),
        problem=problem,
    )


def skipped_share(lines: Sequence[Mapping[str, Json]]) -> float:
    """Of the logged steps of training, those whose loss or gradient was NaN or inf, and which so
    changed nothing."""
    train = [line for line in lines if line.get("split") == "train"]
    bad = [any(line.get(name, 0.0) is None for name in ("loss", "grad_norm")) for line in train]
    return sum(bad) / len(bad) if bad else 0.0


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


def final_metrics(lines: Sequence[Mapping[str, Json]], step: int) -> dict[str, float]:
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
    """What the arms are compared by, unless something else is asked for: the first headline of
    their task that is there."""
    known = {name for row in rows for name in row.metrics}
    wanted = headlines_of(row.point.experiment for row in rows)
    return next((name for name in (*wanted, *OTHERS) if name in known), wanted[0])


def headlines_of(experiments: Iterable[Experiment]) -> list[str]:
    """The headlines of the runs' tasks; of a language model where there is no run."""
    found = dict.fromkeys(h.name for e in experiments for h in e.task.headlines)
    return list(found) or [h.name for h in LanguageModel.headlines]


def higher_is_better(name: str) -> bool:
    """By the tasks' headlines; of what none of them names less is better, but for accuracies."""
    tasks: list[Any] = list(TASKS.values())
    best = {h.name: h.best for task in tasks for h in task.headlines}
    return best.get(name, "max" if name.endswith("accuracy") else "min") == "max"


def require_metric(name: str, experiments: Iterable[Experiment]) -> None:
    """UserError for a metric that no evaluation of these runs will have. A router's own metrics
    are not known before it runs, and pass."""
    experiments = list(experiments)
    known = list(dict.fromkeys(name for e in experiments for name in e.task.figures()))
    if any(experiment.moe.every for experiment in experiments):
        known += [name for name in ROUTING if not name.startswith("moe/probe/")]
    if name in known or name.startswith(("moe/router/", "depth/", "domain/")):
        return
    meant = nearest(name, known)
    message = f"did you mean {meant}?" if meant else f"there are {', '.join(known)}"
    raise UserError(f"--metric={name}: no evaluation has it; {message}")


# Over seeds


@dataclass(frozen=True)
class Arm:
    """The runs that differ only in their seed. difference: to the arm `baseline`, paired by seed,
    over the seeds that both have a figure of."""

    name: str
    overrides: Mapping[str, object]
    rows: tuple[Row, ...]
    value: Interval | None
    difference: Interval | None
    baseline: str

    @property
    def skipped(self) -> float:
        """The largest share of skipped updates of its runs."""
        return max(row.skipped for row in self.rows)

    @property
    def note(self) -> str:
        """What keeps it from being the best; "" for nothing."""
        if self.skipped <= MANY:
            return ""
        return f"up to {self.skipped:.0%} of its updates were skipped (NaN or inf)"


def arms_of(rows: Sequence[Row], metric: str, baseline: str | None = None) -> list[Arm]:
    """The arms in their order, of the points that are done. baseline: an arm's name; default the
    first. Runs of one name whose configs differ in more than the seed are arms of their own."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        config = question_of(row.point.experiment)
        groups.setdefault((row.point.arm, json.dumps(config, sort_keys=True)), []).append(row)
    named: dict[str, list[Row]] = {}
    for (arm, _), group in groups.items():
        others = sum(name == arm or name.startswith(f"{arm} (") for name in named)
        named[f"{arm} ({others + 1})" if arm in named else arm] = group
    baseline = next(iter(named), "") if baseline is None else baseline
    values = {name: _by_seed(group, metric) for name, group in named.items()}
    found = []
    for name, group in named.items():
        pairs = paired(values[name], values[baseline]) if name != baseline else []
        own = list(values[name].values())
        found.append(
            Arm(
                name=name,
                overrides={k: v for k, v in group[0].point.overrides.items() if k != SEED},
                rows=tuple(group),
                value=student(own) if own else None,
                difference=student(pairs) if pairs else None,
                baseline=baseline,
            )
        )
    return found


def best_arm(arms: Sequence[Arm], metric: str) -> Arm | None:
    """By the mean; of those alone whose runs all ended with a figure and skipped few updates,
    since a mean over the runs that went well flatters an arm."""
    sign = -1 if higher_is_better(metric) else 1
    whole = [
        arm
        for arm in arms
        if arm.value is not None and arm.value.n == len(arm.rows) and not arm.note
    ]
    return min(whole, key=lambda arm: sign * arm.value.mean, default=None)  # type: ignore[union-attr]


def _by_seed(rows: Sequence[Row], metric: str) -> dict[int, float]:
    return {row.point.seed: row.value(metric) for row in rows if math.isfinite(row.value(metric))}


# Files


def to_records(rows: Sequence[Row]) -> list[JsonObject]:
    """results.json: nothing in it depends on the machine's speed or on how often it was stopped."""
    return [
        {
            "point": row.point.name,
            "arm": row.point.arm,
            "seed": row.point.seed,
            "done": row.done,
            "skipped": row.skipped,
            "overrides": row.point.overrides,
            **row.costs,
            **row.metrics,
        }
        for row in rows
    ]


def to_csv(records: Sequence[Mapping[str, Json]]) -> str:
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


def arm_records(arms: Sequence[Arm], metric: str) -> list[JsonObject]:
    """arms.csv: mean, 95 % interval (Student) and paired difference of a metric."""
    records = []
    for arm in arms:
        record: JsonObject = {"arm": arm.name, "overrides": arm.overrides, "metric": metric}
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
    try:
        seconds = read_object(folder / OUTCOME).get("seconds")
    except (OSError, UserError):
        return None
    return seconds if isinstance(seconds, int | float) else None
