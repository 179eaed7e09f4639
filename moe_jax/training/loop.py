"""The training loop: data -> step -> metrics, evaluation, probe, checkpoint; stop and resume."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moe_jax.config.activity import doing
from moe_jax.config.checks import require
from moe_jax.config.errors import UserError
from moe_jax.config.json_files import JsonObject
from moe_jax.config.lock import FolderLock
from moe_jax.config.tree import to_json_dict
from moe_jax.data.pipeline import EvaluationBatches, Pipeline
from moe_jax.data.types import DataInfo, Rows
from moe_jax.models.counts import summary
from moe_jax.parallel.agreement import (
    SharedMaximum,
    from_primary,
    primary_first,
    say,
)
from moe_jax.parallel.chips import peak_flops
from moe_jax.parallel.hosts import is_multiprocess, is_primary
from moe_jax.training.build import Program, build, data_seed, require_not_empty
from moe_jax.training.checkpoint import Checkpoints, Restored
from moe_jax.training.evaluation import depth_report, evaluate, load_report, routing_report
from moe_jax.training.experiment import Experiment
from moe_jax.training.identity import config_changes, data_changes, fingerprints
from moe_jax.training.origin import new_state
from moe_jax.training.probe import Probe
from moe_jax.training.progress import Progress
from moe_jax.training.rules import warnings
from moe_jax.training.signals import StopSignals, signal_name
from moe_jax.training.state import TrainState
from moe_jax.training.step import StepResult
from moe_jax.training.workdir import add_history, claimed, set_aside, write_facts
from moe_jax.training.writers import MetricWriter, Profile

PROBE = "probe"  # of a state, the routes of the last probe: what depends on how a run is watched


@dataclass(frozen=True)
class TrainingOutcome:
    """How a call of `train` ended: the last step, whether that is the end, the last evaluation."""

    step: int
    complete: bool
    evaluation: JsonObject


def train(
    experiment: Experiment,
    workdir: str | os.PathLike[str],
    *,
    allow_changes: bool = False,
    warm_start_from: str | None = None,
    grow: str = "noise",
) -> TrainingOutcome:
    """Trains, or goes on with what `workdir` holds.

    allow_changes: resume although config, tokenizer or data differ from the checkpoint's.
    warm_start_from: workdir of another run whose parameters a new run starts from; grow: what the
    router's columns of copied experts are (warm_start.GROW).
    Raises UserError for everything the user can mend.
    """
    require(experiment)
    with contextlib.ExitStack() as stack:
        folder, lock = stack.enter_context(claimed(workdir))
        with primary_first():  # which prepares the data, if need be
            rows = experiment.data.open("train")
            eval_rows = experiment.data.open(experiment.evaluation.split)
        with doing("building the model"):
            info = DataInfo.of(rows)
            program = build(experiment, info)
        require_not_empty(rows, "train", experiment.batch_size)
        require_not_empty(eval_rows, experiment.evaluation.split, 1)
        signals = stack.enter_context(StopSignals())
        checkpoints = stack.enter_context(
            Checkpoints(folder / "checkpoints", experiment.checkpoint)
        )
        data = fingerprints(**{experiment.evaluation.split: eval_rows, "train": rows})
        restored, changes = resume(program, checkpoints, data, allow_changes)
        if restored is not None and restored.step >= experiment.steps:
            say(f"{folder}: the run is complete ({restored.step} steps)")
            return TrainingOutcome(restored.step, True, {})
        describe(program, folder, restored)
        if read := getattr(rows, "read", ""):
            say(f"  data: {read}")
        if restored is None:
            from_primary(functools.partial(set_aside, folder, experiment.checkpoint.every))
            with doing("initialising the parameters"):
                state, index = new_state(program, info, warm_start_from, grow), 0
        else:
            state, index = restored.state, restored.data_index
        start = int(state.step)
        if is_primary():
            write_facts(program, folder, info)
            add_history(folder, start, index, changes)
        run = Run(
            program=program,
            eval_rows=eval_rows,
            data=data,
            pipeline=stack.enter_context(contextlib.closing(pipeline(program, rows, index))),
            checkpoints=checkpoints,
            writer=stack.enter_context(writer(experiment, folder, start)),
            progress=stack.enter_context(Progress(experiment.steps, start)),
            signals=signals,
            lock=lock,
        )
        return run.until_done(state, folder)


def writer(experiment: Experiment, workdir: Path, start: int) -> MetricWriter:
    """Of the run's metrics, from step `start` on."""
    config = to_json_dict(experiment)
    return MetricWriter(workdir, experiment.logging, start_step=start, run_config=config)


def pipeline(program: Program, rows: Rows, start: int) -> Pipeline:
    """The training batches from position `start` of the data; of each, what this process needs."""
    experiment = program.experiment
    size = experiment.batch_size
    return Pipeline(
        rows,
        size,
        seed=data_seed(experiment),
        start=start,
        local_rows=program.local_rows(size).tolist(),
    )


def resume(
    program: Program, checkpoints: Checkpoints, data: JsonObject, allow: bool
) -> tuple[Restored | None, list[str]]:
    """The newest good checkpoint, None for a new run, and what differs from it of config or data;
    refuses such a one unless `allow`."""
    known = checkpoints.read_metadata()
    if known is None:
        return None, []
    wanted = program.abstract_state
    new_probe = known.shapes.get(PROBE) != list(wanted.probe.shape)
    lines = config_changes(known.config, program.experiment)
    lines += data_changes(known.fingerprint, data)
    if lines and not allow:
        message = "\n  ".join(lines)
        raise UserError(
            f"{checkpoints.directory.parent} holds a run with another config or other data:\n"
            f"  {message}\nUse another --workdir, or --allow_changes to go on with the new one."
        )
    with doing("loading the checkpoint"):
        if not new_probe:
            return checkpoints.restore(wanted), lines
        absent: dict[str, Any] = {PROBE: None}
        restored = checkpoints.restore(replace(wanted, **absent), without=(PROBE,))
    if restored is None:
        return None, []
    say("  the probe watches other rows, or other choices, than before: it starts anew")
    return replace(restored, state=replace(restored.state, probe=program.fresh_probe())), lines


def describe(program: Program, workdir: Path, restored: Restored | None) -> None:
    """What the run is, before it starts."""
    experiment, mesh = program.experiment, dict(program.mesh.shape)
    say(f"{experiment.name}: {experiment.steps} steps in {workdir}")
    for name, text in summary(program.counts).items():
        say(f"  {name}: {text}")
    sizes = " ".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "1 device"
    processes = f" on {jax.process_count()} processes" if is_multiprocess() else ""
    say(f"  mesh: {sizes}{processes}")
    for warning in warnings(experiment):
        say(f"  warning: {warning}")
    if restored is not None:
        say(f"  resuming at step {restored.step}")


@dataclass
class Run:
    """One process's run from a state to the last step, a signal or an error."""

    program: Program
    eval_rows: Rows
    data: JsonObject  # the fingerprints of its splits
    pipeline: Pipeline
    checkpoints: Checkpoints
    writer: MetricWriter
    progress: Progress
    signals: StopSignals
    lock: FolderLock
    profile: Profile | None = None
    overflowed: bool = False

    def until_done(self, state: TrainState, workdir: Path) -> TrainingOutcome:
        experiment = self.program.experiment
        probe = Probe(self.program, self.eval_rows) if self.program.probes else None
        clock = Clock(self.program, int(state.step))
        stop = SharedMaximum(lambda: self.signals.number, self.program.mesh)
        step, evaluation = int(state.step), {}
        while step < experiment.steps and not stop.value():
            with doing(self._doing(step)):
                state, result = self._step(state, step)
                stop.ask(after=result.loss)
                step += 1
                last = step == experiment.steps
                self._guard(result, step)
            if step % experiment.logging.every == 0 or last:
                self._log(step, result, clock)
            if probe is not None and step % experiment.logging.probe_every == 0:
                with clock.paused(), doing("probing the routes (the first time it compiles)"):
                    state, metrics = probe(state)
                self.writer.write(step, metrics, split="train")
            if last or (experiment.evaluation.every and step % experiment.evaluation.every == 0):
                with clock.paused():
                    evaluation = self._evaluate(state, step)
            if step % experiment.checkpoint.every == 0 and not last:
                with clock.paused():
                    self._save(step, state)
        self._save(step, state)
        with doing("saving the checkpoint"):
            self.checkpoints.wait()
        if step < experiment.steps:
            say(
                f"stopped by {signal_name(stop.value())} at step {step}, saved; "
                "the same command resumes:\n"
                f"  python -m moe_jax.train --config=... --workdir={workdir}"
            )
        return TrainingOutcome(step, step >= experiment.steps, evaluation)

    def _doing(self, step: int) -> str:
        """The first step compiles, or reads what was compiled before."""
        first = step == self.progress.start
        return "compiling the training step" if first else f"step {step + 1}"

    def _step(self, state: TrainState, step: int) -> tuple[TrainState, StepResult]:
        raw = self.program.put(next(self.pipeline), batch_size=self.pipeline.batch_size)
        profile = self.program.experiment.logging.profile_steps
        if profile and step == profile[0]:
            self.profile = Profile(self.writer.directory / "profile")
        state, result = self.program.train_step(state, raw, self.program.scalars(step))
        if self.profile is not None and step == profile[1]:
            jax.block_until_ready(result)
            self.profile.stop()
            self.profile = None
        return state, result

    def _guard(self, result: StepResult, step: int) -> None:
        """Progress, and an end after too many bad steps in a row."""
        loss, bad_steps = jax.device_get((result.loss, result.bad_steps))
        limit = self.program.experiment.max_bad_steps
        if bad_steps >= limit:
            steps = self.checkpoints.steps()
            kept = f"the checkpoint of step {steps[-1]} is kept." if steps else "nothing is saved."
            raise UserError(
                f"step {step}: loss or gradient was NaN or inf in {limit} steps in a row; those "
                "updates were skipped. Try a lower config.optimizer.learning_rate or more warm-up; "
                + kept,
                exit_code=1,
            )
        self.progress.update(step, {"loss": float(loss)})

    def _log(self, step: int, result: StepResult, clock: Clock) -> None:
        experiment, program = self.program.experiment, self.program
        host = jax.device_get(result)
        metrics: JsonObject = {"loss": float(host.loss), "grad_norm": float(host.grad_norm)}
        metrics |= program.step.task.metrics(host.sums.task)
        # Skipped steps do not advance the optimizer, and so not the schedule.
        metrics["learning_rate"] = float(program.schedule(max(step - 1 - int(host.skipped), 0)))
        metrics |= clock.rates(step)
        metrics |= routing_report(program, host.layers, experiment.moe.capacity_factor)
        metrics |= depth_report(program, host.sums)
        every = experiment.logging.load_every
        if every and step % every == 0:
            metrics |= load_report(program, host.sums)
            metrics |= grad_norm_report(program, host.expert_grad_norm)
        self.writer.write(step, metrics, split="train")
        shown = ("tokens_per_s", "moe/max_violation", "moe/dropped_fraction")
        found = {name: metrics[name] for name in shown if name in metrics}
        if overflow := metrics.get("moe/overflow_fraction", 0.0):
            found["moe/overflow_fraction"] = overflow
            self._warn_of_overflow(step, overflow)
        self.progress.update(step, {"loss": metrics["loss"], **found})

    def _warn_of_overflow(self, step: int, share: float) -> None:
        """Once: it is a loss that no capacity factor has asked for."""
        if not self.overflowed:
            self.overflowed = True
            factor = self.program.experiment.moe.receive_factor
            self.progress.message(
                f"warning: step {step}: {share:.1%} of the assignments found no room at their "
                f"expert's device (moe.receive_factor = {factor:g}); their rows are zeros. A "
                "larger factor has room for them (docs/transports.md)"
            )

    def _evaluate(self, state: TrainState, step: int) -> JsonObject:
        program, config = self.program, self.program.experiment.evaluation
        limit = None if config.batches == -1 else config.batches
        size = program.eval_batch_size
        local = program.local_rows(size).tolist()
        batches = EvaluationBatches(self.eval_rows, size, limit, local, program.columns)
        metrics = evaluate(program, state, batches)
        self.writer.write(step, metrics, split="eval")
        names = dict.fromkeys(
            (*(h.name for h in program.experiment.task.headlines), "accuracy", "moe/max_violation")
        )
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)
        self.progress.message(f"step {step} evaluation: {shown}")
        return metrics

    def _save(self, step: int, state: TrainState) -> None:
        self.lock.check()
        self.writer.send()
        with doing("saving the checkpoint"):
            self.checkpoints.save(
                step,
                state,
                data_index=self.pipeline.next_index,
                config=to_json_dict(self.program.experiment),
                fingerprint=self.data,
            )


def grad_norm_report(program: Program, norm_LE: np.ndarray | None) -> dict[str, list[float]]:
    """`moe/layer_07/expert_grad_norm`: one number per expert."""
    if norm_LE is None:
        return {}
    return {
        f"moe/layer_{layer:02d}/expert_grad_norm": [float(x) for x in norm_E]
        for layer, norm_E in zip(program.layout.moe_layers, norm_LE, strict=True)
    }


class Clock:
    """Rates between two logged steps, without evaluations, probes and saves, and without the
    first step, which compiles."""

    def __init__(self, program: Program, step: int):
        experiment = program.experiment
        self._tokens = experiment.batch_size * experiment.row_length
        self._flops = program.counts.flops_per_token
        peak = peak_flops(program.mesh.devices.flat[0].device_kind, experiment.model.dtype)
        self._peak = None if peak is None else peak * program.mesh.size
        self._step, self._since, self._out = step, time.perf_counter(), 0.0
        self._first = True

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._out += time.perf_counter() - start

    def rates(self, step: int) -> dict[str, float]:
        """step_time_s, tokens_per_s, flops_per_token and, where the peak is known, mfu."""
        now = time.perf_counter()
        seconds = (now - self._since - self._out) / max(step - self._step, 1)
        self._step, self._since, self._out = step, now, 0.0
        if self._first:
            self._first = False
            return {"flops_per_token": self._flops}
        rate = self._tokens / seconds
        report = {"step_time_s": seconds, "tokens_per_s": rate, "flops_per_token": self._flops}
        if self._peak is not None:
            report["mfu"] = rate * self._flops / self._peak
        return report
