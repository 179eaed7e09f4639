"""Trains one arm in this process, without a workdir, and looks at what came out."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moe_jax.analysis.specialisation import specialisation
from moe_jax.config.overrides import load_config
from moe_jax.data.pipeline import Pipeline
from moe_jax.notebook import LoadedRun
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment

CONFIG = "configs/quickstart.py"
COMMON: dict[str, Any] = {
    "data.kind": "planted",
    "optimizer.schedule.warmup_steps": 20,
    "moe.losses.load_balance.coefficient": 0.0,
    "moe.losses.router_z.coefficient": 0.0,
    "logging.probe_every": 0,
}
LEAK_BATCHES = 2


def experiment_of(overrides: Mapping[str, Any], seed: int, steps: int) -> Experiment:
    """The quickstart on the planted corpus, with an arm's overrides on top."""
    chosen = {**COMMON, "steps": steps, "seed": seed, **overrides}
    return load_config(CONFIG, chosen, Experiment)


@dataclass
class Watch:
    """Times of steps in ms, and of another program's steps in between."""

    own: list[float]
    reference: list[float]

    @property
    def ratio(self) -> float | None:
        if not self.reference:
            return None
        return statistics.median(self.own) / statistics.median(self.reference)


def train(
    experiment: Experiment,
    *,
    reference: Callable[[], float] | None = None,
    each: Callable[[int, Any, Any], None] | None = None,
) -> tuple[LoadedRun, Watch]:
    """The trained run. reference: does one step of another program and gives its ms, called every
    tenth step. each(step, state, result): called after every step."""
    rows = experiment.data.open("train")
    program = build(experiment, rows.tokenizer, devices=jax.devices()[:1])
    state, watch = program.init(), Watch([], [])
    with contextlib.closing(
        Pipeline(rows, experiment.batch_size, seed=experiment.seed)
    ) as pipeline:
        for step in range(experiment.steps):
            raw = program.put(next(pipeline))
            start = time.perf_counter()
            state, result = program.train_step(state, raw, program.scalars(step))
            jax.block_until_ready((state, result))
            if step >= 2:
                watch.own.append(1e3 * (time.perf_counter() - start))
            if each is not None:
                each(step, state, result)
            if reference is not None and step >= 2 and step % 10 == 0:
                watch.reference.append(reference())
    held_out = experiment.data.open(experiment.evaluation.split)
    return LoadedRun(Path("."), program, state, held_out), watch


def stepper(experiment: Experiment) -> Callable[[], float]:
    """One more step of this experiment's training, timed in ms, at each call."""
    rows = experiment.data.open("train")
    program = build(experiment, rows.tokenizer, devices=jax.devices()[:1])
    batch = np.stack([rows[i]["tokens"] for i in range(experiment.batch_size)])
    raw = program.put({"tokens": batch, "segments": np.ones_like(batch)})
    holder = {"state": program.init()}

    def step() -> float:
        start = time.perf_counter()
        holder["state"], result = program.train_step(holder["state"], raw, program.scalars(0))
        jax.block_until_ready((holder["state"], result))
        return 1e3 * (time.perf_counter() - start)

    step()
    step()
    return step


def with_capacity(run: LoadedRun, factor: float | None) -> LoadedRun:
    """The run evaluated with another capacity factor."""
    e = run.program.experiment
    changed = replace(e, evaluation=replace(e.evaluation, capacity_factor=factor))
    return replace(run, program=replace(run.program, experiment=changed))


def describe(run: LoadedRun) -> dict[str, Any]:
    """The figures of a trained run, on the validation split."""
    metrics = run.evaluate()
    found = {
        name: metrics[f"moe/{name}"]
        for name in ("max_violation", "experts_per_token", "router_entropy", "dead_experts")
    }
    found["bits_per_byte"] = metrics["bits_per_byte"]
    moe = run.config.moe
    own = getattr(moe.router, "own_capacity", False)
    found["dropped_at_1.25"] = (
        None if own else with_capacity(run, 1.25).evaluate()["moe/dropped_fraction"]
    )
    for name, train_routing in (("leak", False), ("training_leak", True)):
        leak = run.leak(LEAK_BATCHES, train=train_routing)
        found[name] = {key: leak[key] for key in ("routes_changed", "nats", "absolute_nats")}
    found["specialisation"] = list(specialisation(run.trace()).values())
    return found
