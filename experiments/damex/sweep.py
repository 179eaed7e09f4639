"""A detector of several data sets at once: routes that are learned, or one for each data set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from experiments.card import Card, Scale
from moe_jax.analysis.specialisation import specialisation
from moe_jax.notebook import LoadedRun
from moe_jax.training.experiment import Experiment

CONFIG = "configs/detection.py:together"
TRACED = 8  # batches of the evaluation
TELLS, SHUFFLED = "told of the data set", "told, images shuffled"
MEAN = "average precision, mean of sets"
# One layer in each half, both sparse: 360 steps are what two cores have time for.
TINY: dict[str, Any] = {
    "steps": 360,
    "model.num_layers": 2,
    "model.model_dim": 64,
    "model.head_dim": 16,
    "model.mlp_dim": 128,
    "moe.expert_dim": 64,
    "optimizer.schedule.warmup_steps": 40,
    "evaluation.every": 0,
    "checkpoint.every": 360,
    "logging.probe_every": 0,
    "logging.load_every": 0,
    "logging.every": 20,
}
SPARSE: dict[str, Any] = {"moe.every": 1, "moe.first": 0}
POD: dict[str, Any] = {
    "data.height": 128,
    "data.width": 128,
    "model.num_layers": 12,
    "model.model_dim": 256,
    "model.num_heads": 8,
    "model.num_kv_heads": 8,
    "model.head_dim": 32,
    "model.mlp_dim": 2048,
    "moe.expert_dim": 1024,
    "batch_size": 64,
    "mesh.data": 4,
    "steps": 100_000,
}


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    no_losses = {"moe.losses.importance.coefficient": 0.0, "moe.losses.load.coefficient": 0.0}
    by_task = {"moe.router.kind": "task_level", "moe.router.k": 2, **no_losses}
    return {
        "learned": SPARSE,
        "by data set": {**SPARSE, **by_task},
        "dense": {"moe.every": 0},
    }


def measure(run: LoadedRun) -> dict[str, float]:
    """Average precision of each data set over its own classes, their mean; of sparse models the
    share of the data set's entropy that the expert of an assignment tells, the mean over layers,
    and the same where each image is given the data set of another one."""
    last = [line for line in run.metrics if line.get("split") == "eval"][-1]
    sets = [last[f"domain/{name}/average_precision"] for name in run.info.domains]
    found = {MEAN: float(np.mean(sets))}
    if not run.config.moe.every:
        return found
    trace = run.trace(TRACED)
    shuffled = np.random.default_rng(0).permutation(trace.domain_N)
    for name, one in ((TELLS, trace), (SHUFFLED, replace(trace, domain_N=shuffled))):
        found[name] = float(np.mean(list(specialisation(one, "domain").values())))
    return found


CARD = Card(
    title="Experts by data set",
    arms=arms,
    scales={
        "tiny": Scale(config=CONFIG, seeds=3, overrides=TINY),
        "small": Scale(config=CONFIG, seeds=5, overrides={"steps": 20_000}),
        "pod": Scale(config=CONFIG, seeds=1, overrides=POD, topology="v5p:2x2x1"),
    },
    measure=measure,
    shown=(MEAN, "average_precision", TELLS, SHUFFLED, "moe/load_cv"),
)
