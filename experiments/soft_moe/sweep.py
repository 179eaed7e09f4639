"""How long a training step takes as the number of experts grows, at the same number of slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.timing import interleaved
from experiments.card import Card, Scale
from experiments.figures import curves
from moe_jax.config.overrides import apply_overrides
from moe_jax.notebook import LoadedRun
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment

CONFIG = "configs/fashion.py:soft_moe"
SLOTS = 96  # an image of 49 patches, whatever the number of experts
EXPERTS = (8, 32, 96)
ARMS = ("soft", "sparse")
REPEATS = 15
# 49 patches of 4 x 4 pixels, of which two choices each are about as many as the slots; two layers,
# since the time of more is the same again.
SETTINGS = {
    "steps": 10,
    "optimizer.schedule.warmup_steps": 2,
    "evaluation.every": 0,
    "evaluation.batches": 1,
    "model.num_layers": 2,
    "model.patch_size": 4,
}


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    return {"soft_moe": {}}


def name_of(what: str, experts: int) -> str:
    return f"ms, {what}, {experts} experts"


def measure(run: LoadedRun) -> dict[str, float]:
    """Milliseconds of a training step, the median of repeats that go through all models in turn."""
    sparse = {
        "moe.router.kind": "v_moe",
        "moe.router.k": 2,
        "moe.layout": "rows",
        "moe.capacity_factor": 1.05,
        "moe.group_size": 8 * run.config.row_length,
    }
    wanted: dict[str, dict[str, Any]] = {}
    for E in EXPERTS:
        soft = {"moe.router.slots_per_expert": SLOTS // E}
        wanted[name_of("soft", E)] = {"moe.num_experts": E, **soft}
        wanted[name_of("sparse", E)] = {"moe.num_experts": E, **sparse}
    rows = run.config.batch_size
    batch = {name: x[:rows] for name, x in next(iter(run.batches(1))).items()}
    calls = {name: _step(run, changes, batch) for name, changes in wanted.items()}
    times = interleaved(calls, REPEATS, warm=True)
    found = {name: 1e3 * float(np.median(seconds[:, 0])) for name, seconds in times.items()}
    few, many = EXPERTS[0], EXPERTS[-1]
    for what in ARMS:
        found[f"growth, {what}"] = found[name_of(what, many)] / found[name_of(what, few)]
    return found


def _step(run: LoadedRun, changes: Mapping[str, Any], batch: Mapping[str, np.ndarray]):
    """A call that trains a model of other experts by a step, and waits for it."""
    experiment = apply_overrides(run.config, changes, Experiment)
    program = build(experiment, run.info, devices=jax.devices()[:1])
    raw, states = program.put(batch), [program.init()]

    def step() -> None:
        state, result = program.train_step(states.pop(), raw, program.scalars(0))
        states.append(state)
        jax.block_until_ready((state, result))

    step()
    return step


def figure(runs: Sequence[Mapping[str, Any]]) -> str:
    """Milliseconds over the number of experts."""
    own = [run for run in runs if run["arm"] == "soft_moe"]
    series = {
        what: [(E, [run.get(name_of(what, E)) for run in own]) for E in EXPERTS] for what in ARMS
    }
    return curves(series, "Milliseconds of a step", "experts, at the same number of slots")


CARD = Card(
    title="Soft MoE's step",
    arms=arms,
    scales={
        "tiny": Scale(config=CONFIG, seeds=3, overrides=SETTINGS),
        "small": Scale(config=CONFIG, seeds=5, overrides={**SETTINGS, "batch_size": 512}),
    },
    measure=measure,
    figure=figure,
    shown=(
        *(name_of(what, E) for what in ARMS for E in EXPERTS),
        *(f"growth, {what}" for what in ARMS),
    ),
)
