"""Runs the steps of one variant, and keeps all that is compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from moe_jax.data.types import ArraySpec
from moe_jax.models.network import flat
from moe_jax.parallel.compiler import quick_options
from moe_jax.tasks.types import Objective, Sums
from moe_jax.training.build import Program, build, data_seed
from moe_jax.training.experiment import Experiment
from moe_jax.training.state import TrainState
from moe_jax.training.step import Scalars, StepResult

Arrays = dict[str, np.ndarray]  # by name


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step. numbers: what a run logs. counts, sums: the integers and the floats that routing
    adds up, by layer. gradients: by parameter. router_state: after the step."""

    numbers: dict[str, float]
    counts: Arrays
    sums: Arrays
    gradients: Arrays
    router_state: Arrays

    def total(self, name: str) -> int:
        return int(self.counts[name].sum()) if name in self.counts else 0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """All steps of one variant. start, params: parameters before the first, after the last step."""

    steps: tuple[StepRecord, ...]
    start: Arrays
    params: Arrays


def synthetic_rows(experiment: Experiment, steps: int) -> list[Arrays]:
    """Batches of the columns that the task reads.

    Text: several segments a row, padding at the end of most, one row empty; ids are unevenly
    frequent, and later rows have more padding, so that devices differ in load and in their number
    of tokens: a mean taken on one device is then not the mean of the batch. Of other columns one
    row in eight is padding.
    """
    random = np.random.default_rng([data_seed(experiment), 3])
    batches = []
    for _ in range(steps):
        batch = {}
        for name, spec in experiment.columns.items():
            if name not in ("tokens", "segments"):
                batch[name] = _column(random, spec, experiment)
        if "tokens" in experiment.columns:
            length = experiment.columns["tokens"].shape[0]
            batch |= _text(random, experiment.batch_size, length, experiment.vocabulary or 2)
        batches.append(batch)
    return batches


def _text(random: np.random.Generator, B: int, length: int, V: int) -> Arrays:
    frequency_V = 1 / np.arange(1, V + 1)
    tokens = random.choice(V, (B, length), p=frequency_V / frequency_V.sum())
    cuts = np.sort(random.integers(1, length - 1, (B, 2)), axis=1)
    place = np.arange(length)[None]
    segments = 1 + (place >= cuts[:, :1]) + (place >= cuts[:, 1:])
    padding = np.arange(B) * (length - 1) // (2 * B) + random.integers(0, 4, B)
    padding[B // 2] = length
    segments[place >= length - padding[:, None]] = 0
    return {"tokens": tokens.astype(np.int32), "segments": segments.astype(np.int32)}


def _column(random: np.random.Generator, spec: ArraySpec, experiment: Experiment) -> np.ndarray:
    B = experiment.batch_size
    if np.issubdtype(np.dtype(spec.dtype), np.integer):
        below = spec.below or experiment.io.classes or 2
        values: np.ndarray = random.integers(0, below, (B, *spec.shape))
    else:
        values = random.normal(size=(B, *spec.shape))
    values[B // 2 :: 8] = spec.padding
    return values.astype(spec.dtype)


def program_of(experiment: Experiment, devices: Sequence[jax.Device]) -> Program:
    """The program whose optimizer state also holds the last gradients."""
    program = build(experiment, experiment.stand_in(), devices)
    step = dataclasses.replace(program.step, optimizer=_recording(program.step.optimizer))
    return dataclasses.replace(program, step=step)


class _Recorded(NamedTuple):
    gradients: optax.Updates
    inner: optax.OptState


def _recording(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    def init(params: optax.Params) -> _Recorded:
        return _Recorded(jax.tree.map(jnp.zeros_like, params), optimizer.init(params))

    def update(
        updates: optax.Updates, state: _Recorded, params: optax.Params | None = None
    ) -> tuple[optax.Updates, _Recorded]:
        changed, inner = optimizer.update(updates, state.inner, params)
        return changed, _Recorded(updates, inner)

    return optax.GradientTransformation(init, update)


def initial_state(program: Program) -> TrainState:
    """A new state in the host's memory, to be put on any mesh."""
    options = quick_options(program.mesh)
    return jax.device_get(jax.jit(program.init, compiler_options=options)())


def lower_quick(program: Program, batch: Arrays, scalars: Scalars) -> jax.stages.Lowered:
    """The training step for this mesh, traced, to be compiled the quick way: all that runs Python.
    Its `compile` may be called in another thread."""
    jitted = program.jitted_step(quick_options(program.mesh))
    return jitted.lower(program.abstract_state, program.put(batch), scalars)


def run(
    program: Program,
    step: jax.stages.Compiled,
    state: TrainState,
    batches: Sequence[Arrays],
    scalars: Sequence[Mapping[str, np.float32]],
) -> Trial:
    """One optimizer step a batch. step: `lower_quick` compiled; state: from `initial_state`."""
    start = _by_name(state.params)
    placed = jax.device_put(state, program.state_shardings)
    records = []
    for batch, values in zip(batches, scalars, strict=True):
        placed, result = step(placed, program.put(batch), values)
        records.append(_record(jax.device_get(result), placed, program.step.task))
    return Trial(steps=tuple(records), start=start, params=_by_name(placed.params))


def _record(result: StepResult, state: TrainState, task: Objective) -> StepRecord:
    added = result.sums.task
    numbers = {
        "loss": float(result.loss),
        **_losses(task, added),
        "gradient norm": float(result.grad_norm),
    }
    if "load_balance_loss" in result.layers:
        numbers["load_balance_loss"] = float(np.mean(result.layers["load_balance_loss"]))
    counts: Arrays = {name: np.asarray(added[name]) for name in task.counters if name in added}
    sums: Arrays = {}
    for part in (result.sums.routing, result.sums.traffic):
        for name, leaf in flat(part, ".").items():
            value = np.asarray(leaf)
            kept = counts if np.issubdtype(value.dtype, np.integer) else sums
            kept[name] = value
    return StepRecord(
        numbers=numbers,
        counts=counts,
        sums=sums,
        gradients=_by_name(state.opt_state.gradients),
        router_state=_by_name(state.router_state),
    )


def _losses(task: Objective, added: Sums) -> dict[str, float]:
    """What the task itself loses, without the routing losses."""
    metrics = task.metrics(added)
    return {name: metrics[name] for name in task.losses}


def _by_name(tree: PyTree[Array]) -> Arrays:
    return {name: np.asarray(leaf) for name, leaf in flat(jax.device_get(tree)).items()}
