"""What experiments.benchmarks.overhead measures."""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from moe_jax.cli import Arguments
from moe_jax.config.overrides import load_config
from moe_jax.data.pipeline import Pipeline
from moe_jax.parallel.host_memory import keep_freed_memory
from moe_jax.training.build import Program, build
from moe_jax.training.experiment import Experiment
from moe_jax.training.loop import Clock, Run
from moe_jax.training.progress import Progress
from moe_jax.training.signals import StopSignals
from moe_jax.training.writers import MetricWriter


def main(arguments: Arguments) -> int:
    flags = arguments.flags
    keep_freed_memory()
    experiment = load_config(flags.config, arguments.overrides, Experiment)
    rows = experiment.data.open("train")
    program = build(experiment, rows.tokenizer, devices=jax.devices()[:1])
    figures = {
        **metrics_cost(program, rows, flags.repeats),
        **host_cost(program, rows, flags.steps),
    }
    for name, value in figures.items():
        print(f"{name:32} {value:.4g}")
    if flags.json:
        Path(flags.json).write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def host_cost(program: Program, rows: Any, steps: int) -> dict[str, float]:
    """The loop around a step that does nothing."""
    experiment = program.experiment
    with contextlib.closing(Pipeline(rows, experiment.batch_size, seed=0)) as pipeline:
        state = program.init()
        raw = program.put(next(pipeline))
        state, canned = program.train_step(state, raw, program.scalars(0))
        jax.block_until_ready(canned)
        program.__dict__["train_step"] = lambda state, raw, scalars: (state, canned)
        with (
            tempfile.TemporaryDirectory() as folder,
            MetricWriter(Path(folder), experiment.logging) as writer,
            Progress(steps, 0) as progress,
            StopSignals() as signals,
        ):
            run = Run(
                program=program,
                eval_rows=rows,
                data={},
                pipeline=pipeline,
                checkpoints=None,
                writer=writer,
                progress=progress,
                signals=signals,
                lock=None,
            )
            clock, times = Clock(program, 0), []
            for step in range(steps):
                start = time.perf_counter()
                state, result = run._step(state, step)
                run._guard(result, step + 1)
                if (step + 1) % experiment.logging.every == 0:
                    run._log(step + 1, result, clock)
                times.append(time.perf_counter() - start)
    times = times[20:]  # the first ones fill caches
    return {
        "host_ms_per_step_mean": 1e3 * statistics.fmean(times),
        "host_ms_per_step_median": 1e3 * statistics.median(times),
    }


def metrics_cost(program: Program, rows: Any, repeats: int) -> dict[str, float]:
    """The training step with and without its metrics."""

    def bare(state: Any, raw: Any, scalars: Any) -> Any:
        state, result = program.step.train(state, raw, scalars)
        return state, (result.loss, result.bad_steps)

    arms = {"full": program.train_step, "bare": jax.jit(bare, donate_argnums=0)}
    states = {name: program.init() for name in arms}
    times: dict[str, list[float]] = {name: [] for name in arms}
    with contextlib.closing(Pipeline(rows, program.experiment.batch_size, seed=0)) as pipeline:
        for repeat in range(repeats + 2):
            raw = program.put(next(pipeline))
            order = list(arms) if repeat % 2 else list(arms)[::-1]
            for name in order:
                jax.block_until_ready(states[name])
                start = time.perf_counter()
                states[name], result = arms[name](states[name], raw, program.scalars(repeat))
                jax.block_until_ready((states[name], result))
                times[name].append(time.perf_counter() - start)
    full, without = (statistics.median(times[name][2:]) for name in ("full", "bare"))
    ratios = [f / b for f, b in zip(times["full"][2:], times["bare"][2:], strict=True)]
    return {
        "step_ms_with_metrics": 1e3 * full,
        "step_ms_without_metrics": 1e3 * without,
        "metrics_ratio_of_medians": full / without,
        "metrics_ratio_pairwise_median": statistics.median(ratios),
    }
