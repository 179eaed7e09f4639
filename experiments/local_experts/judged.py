"""The likelihood of a mixture beside two other errors: what is measured, and the verdict."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.local_experts.mixture import LOSSES, init, measure, train
from experiments.local_experts.tasks import TASKS, LocalTask

EXPERTS = (4, 8)
JUDGED = 8  # the number of experts that the verdict is about
STEPS, RATE = 2000, 0.05
FIRST_SEED = 100  # lower seeds were used to choose the widths

# 97.5% quantiles of Student's t for 1, 2, ... degrees of freedom; beyond them the last one.
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

# (metric, sign): in this direction the likelihood has to differ from the cooperative error.
CLAIMS = {"information": 1, "experts_per_case": -1}


def run(seeds: int) -> dict[str, Any]:
    """Everything that was measured, as JSON."""
    numbers = list(range(FIRST_SEED, FIRST_SEED + seeds))
    results: dict[str, Any] = {
        "seeds": numbers,
        "steps": STEPS,
        "rate": RATE,
        "judged_experts": JUDGED,
        "tasks": {},
        "verdict": {},
    }
    for name, make in TASKS.items():
        tasks = [make(seed) for seed in numbers]
        measured = {
            "std": tasks[0].std,
            "stds": list(tasks[0].stds),
            "most_information": math.log2(tasks[0].regimes),
            "experts": {str(E): measure_task(tasks, numbers, E) for E in EXPERTS},
        }
        results["tasks"][name] = measured
        results["verdict"][name] = verdict(measured["experts"][str(JUDGED)])
    return results


def measure_task(tasks: list[LocalTask], seeds: list[int], E: int) -> dict[str, Any]:
    """Per error and metric one value per seed, the paired differences, and the sweep of std."""
    task = tasks[0]
    x_STD = jnp.stack([jnp.asarray(task.x["train"]) for task in tasks])
    d_STO = jnp.stack([jnp.asarray(task.d["train"]) for task in tasks])
    initial = [init(jax.random.key(s), x_STD.shape[-1], E, d_STO.shape[-1]) for s in seeds]
    start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *initial)

    def trained(loss: str, std: float) -> dict[str, list[float]]:
        params = train(
            start,
            x_STD,
            d_STO,
            jnp.float32(std),
            loss=loss,
            classes=task.classes,
            steps=STEPS,
            rate=RATE,
        )
        rows = [
            measure(jax.tree.map(lambda leaf, i=i: leaf[i], params), one)
            for i, one in enumerate(tasks)
        ]
        return {metric: [round(row[metric], 5) for row in rows] for metric in rows[0]}

    sweep = {str(std): trained("likelihood", std) for std in task.stds}
    losses = {loss: trained(loss, 1.0) for loss in LOSSES if loss != "likelihood"}
    losses["likelihood"] = sweep[str(task.std)]
    return {
        "losses": losses,
        "likelihood_minus": {
            other: {
                metric: difference(losses["likelihood"][metric], losses[other][metric])
                for metric in losses[other]
            }
            for other in ("cooperative", "competing")
        },
        "likelihood_by_std": sweep,
    }


def difference(a: list[float], b: list[float]) -> dict[str, float]:
    """The paired mean of a - b and its 95% interval by Student's t."""
    delta = np.array(a) - np.array(b)
    n = len(delta)
    width = T_QUANTILE[min(n - 1, len(T_QUANTILE)) - 1] * delta.std(ddof=1) / math.sqrt(n)
    low, mean, high = delta.mean() - width, delta.mean(), delta.mean() + width
    return {"mean": round(mean, 5), "low": round(low, 5), "high": round(high, 5)}


def verdict(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Each claim, and whether the whole 95% interval is on its side of 0."""
    found = []
    for metric, sign in CLAIMS.items():
        delta = measured["likelihood_minus"]["cooperative"][metric]
        side = delta["low"] if sign > 0 else -delta["high"]
        word = "more" if sign > 0 else "less"
        found.append(
            {
                "claim": f"likelihood has {word} {metric} than cooperative",
                "difference": delta,
                "holds": bool(side > 0),
            }
        )
    return found
