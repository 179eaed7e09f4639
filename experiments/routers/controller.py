"""What experiments.routers.remoe trains, and the page that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.routers.arms import of
from experiments.routers.trial import experiment_of, train
from moe_jax.cli import Arguments
from moe_jax.parallel.host_memory import keep_freed_memory

HERE = Path(__file__).parent
FIGURES, TEXT = HERE / "remoe.json", HERE / "remoe.md"
LAMBDAS = (1e-16, 1e-13, 1e-12, 1e-8, 1e-6, 1e-3, 1e-2, 1.0)
STEPS = 200


def main(arguments: Arguments) -> int:
    flags = arguments.flags
    keep_freed_memory()
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for start in () if flags.table_only else LAMBDAS:
        by_seed = figures.setdefault(f"{start:g}", {})
        if str(flags.seed) not in by_seed:
            by_seed[str(flags.seed)] = controlled(start, flags.seed)
            FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
            jax.clear_caches()
    TEXT.write_text(text(figures))
    print(text(figures))
    return 0


def controlled(start: float, seed: int) -> dict[str, Any]:
    """Active experts per token and layer after each step, from one first coefficient."""
    active: list[list[float]] = []

    def each(step: int, state: Any, result: Any) -> None:
        active.append(np.asarray(result.layers["experts_per_token"]).tolist())

    overrides = of("remoe", initial_lambda=start)
    run, _ = train(experiment_of(overrides, seed, STEPS), each=each)
    return {
        "experts": run.config.moe.num_experts,
        "target": run.config.moe.router.k,  # type: ignore[attr-defined]
        "active_at_150": np.mean(active[140:150], axis=0).tolist(),
        "last": active[-1],
    }


def text(figures: dict[str, Any]) -> str:
    """The figures and their verdict in Markdown."""
    lines = [
        "# ReMoE's controller",
        "",
        f"`python -m experiments.routers.remoe`: {STEPS} steps of the quickstart on the planted "
        "corpus. The command writes this page.",
        "",
        "Active experts per token in each layer, mean of steps 141-150, and the sparsity 1 - "
        "active / experts over all layers; reached: within 0.05 of the target.",
        "",
        "| first coefficient | active experts, by layer | sparsity | target | reached |",
        "| --- | --- | --- | --- | --- |",
    ]
    reached = []
    for start, by_seed in sorted(figures.items(), key=lambda item: float(item[0])):
        for x in by_seed.values():
            layers = ", ".join(f"{value:.2f}" for value in x["active_at_150"])
            sparsity = 1 - np.mean(x["active_at_150"]) / x["experts"]
            target = 1 - x["target"] / x["experts"]
            near = abs(sparsity - target) <= 0.05
            reached += [float(start)] if near else []
            said = "yes" if near else "no"
            lines.append(f"| {start} | {layers} | {sparsity:.3f} | {target:.3f} | {said} |")
    if reached:
        decades = np.log10(max(reached) / min(reached))
        lines += ["", f"Reached within 150 steps over {decades:.0f} decades of the coefficient."]
    return "\n".join(lines) + "\n"
