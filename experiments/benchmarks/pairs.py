"""What experiments.benchmarks.bfloat16 measures."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.timing import machine
from moe_jax.checking.trial import program_of
from moe_jax.cli import Arguments
from moe_jax.config.overrides import load_config
from moe_jax.data.pipeline import EvaluationBatches, Pipeline
from moe_jax.parallel.host_memory import keep_freed_memory
from moe_jax.training.build import Program, data_seed
from moe_jax.training.evaluation import evaluate
from moe_jax.training.experiment import Experiment
from moe_jax.training.parameters import flat

TYPES = ("float32", "bfloat16")


def main(arguments: Arguments) -> int:
    flags = arguments.flags
    keep_freed_memory()
    experiment = load_config(flags.config, arguments.overrides, Experiment)
    pairs = [pair(dataclasses.replace(experiment, seed=seed)) for seed in range(flags.seeds)]
    print("| loss, nats | " + " | ".join((*TYPES, "difference")) + " |")
    print("| --- | ---: | ---: | ---: |")
    for name in ("training", "evaluation"):
        measured = np.array([[one[name][dtype] for dtype in TYPES] for one in pairs])
        difference = measured[:, 1] - measured[:, 0]
        error = (
            2 * difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.nan
        )
        means = " | ".join(f"{mean:.4f}" for mean in measured.mean(axis=0))
        print(f"| {name} | {means} | {difference.mean():+.4f} ± {error:.4f} |")
    steps = sorted(pairs[0]["cosine"])
    print("\n| least cosine of seeds | " + " | ".join(f"step {step}" for step in steps) + " |")
    print("| --- |" + " ---: |" * len(steps))
    for name in pairs[0]["cosine"][steps[0]]:
        least = [min(one["cosine"][step][name] for one in pairs) for step in steps]
        print(f"| {name} | " + " | ".join(f"{value:.5f}" for value in least) + " |")
    if flags.json:
        text = json.dumps({"machine": machine(), "seeds": pairs}, indent=1)
        Path(flags.json).write_text(text + "\n", "utf-8")
    return 0


def pair(experiment: Experiment) -> dict[str, Any]:
    """Losses by type, and cosines by step and parameter."""
    device = jax.devices()[:1]
    programs = {
        dtype: program_of(
            dataclasses.replace(
                experiment, model=dataclasses.replace(experiment.model, dtype=dtype)
            ),
            device,
        )
        for dtype in TYPES
    }
    states = {dtype: program.init() for dtype, program in programs.items()}
    losses: dict[str, list[float]] = {dtype: [] for dtype in TYPES}
    looked = {0, experiment.steps // 2, experiment.steps - 1}
    cosine: dict[int, dict[str, float]] = {}
    rows = experiment.data.open("train")
    pipeline = Pipeline(rows, experiment.batch_size, seed=data_seed(experiment))
    for step in range(experiment.steps):
        batch = next(pipeline)
        before = jax.tree.map(np.array, states["float32"]) if step in looked else None
        for dtype, program in programs.items():
            states[dtype], loss = one_step(program, states[dtype], batch, step)
            losses[dtype].append(loss)
        if before is not None:
            other = programs["bfloat16"]
            narrow, _ = one_step(other, jax.device_put(before, other.state_shardings), batch, step)
            cosine[step] = cosines(states["float32"], narrow)
        if (step + 1) % 50 == 0:
            print(f"seed {experiment.seed}, step {step + 1} of {experiment.steps}", file=sys.stderr)
    pipeline.close()
    last = max(experiment.steps // 10, 1)
    held_out = experiment.data.open(experiment.evaluation.split)
    size = experiment.evaluation.batch_size or experiment.batch_size
    evaluated = {
        dtype: evaluate(program, states[dtype], EvaluationBatches(held_out, size))["cross_entropy"]
        for dtype, program in programs.items()
    }
    return {
        "seed": experiment.seed,
        "training": {dtype: float(np.mean(losses[dtype][-last:])) for dtype in TYPES},
        "evaluation": evaluated,
        "cosine": cosine,
    }


def one_step(program: Program, state: Any, batch: Any, step: int) -> tuple[Any, float]:
    state, result = program.train_step(state, program.put(batch), program.scalars(step))
    task = result.sums.task
    return state, float(task["nats"]) / max(int(task["tokens"]), 1)


def cosines(wide: Any, narrow: Any) -> dict[str, float]:
    """Of the gradients that two states have recorded."""
    one, other = (flat(jax.device_get(s.opt_state.gradients)) for s in (wide, narrow))

    def of(a: Any, b: Any) -> float:
        a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
        return float(a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-300))

    return {name: of(one[name], other[name]) for name in one}
