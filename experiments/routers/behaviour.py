"""What the papers say routers do, on several seeds: four claims, each with its figures.

    python -m experiments.routers.behaviour [--seeds=0,1,2] [--steps=300] [--table_only]

loss_free   a bias that follows the load (2408.15664) balances an evaluation at least 5 times better
            than the auxiliary loss at no worse loss
remoe       the adaptive L1 coefficient (2412.14711) brings every layer to its target sparsity
            within 150 steps, from coefficients over ten decades
collapse    without any balancing the load collapses onto few experts
priority    as capacity falls, batch-prioritised dropping loses less than dropping by position
            (2106.05974)

Writes experiments/routers/behaviour.json (runs that it has are not repeated) and behaviour.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.routers.arms import of
from experiments.routers.trial import experiment_of, train, with_capacity
from moe_jax.config.cli import Arguments, door_flags, run_door
from moe_jax.config.overrides import apply_overrides
from moe_jax.notebook import LoadedRun
from moe_jax.parallel.host_memory import keep_freed_memory
from moe_jax.training.build import build

HERE = Path(__file__).parent
FIGURES, TEXT = HERE / "behaviour.json", HERE / "behaviour.md"
FACTORS = (None, 1.5, 1.0, 0.75, 0.5, 0.35, 0.25)
LAMBDAS = (1e-16, 1e-13, 1e-12, 1e-8, 1e-6, 1e-3, 1e-2, 1.0)

FLAGS = door_flags()
flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds", flag_values=FLAGS)
flags.DEFINE_integer("steps", 300, "training steps", flag_values=FLAGS)
flags.DEFINE_list("only", None, "claims (default: all)", flag_values=FLAGS)
flags.DEFINE_boolean("table_only", False, "only write the text anew", flag_values=FLAGS)


def aux(coefficient: float) -> dict[str, Any]:
    """The router of loss-free balancing without its bias, balanced by the auxiliary loss."""
    found = of("loss_free", bias_update="none")
    return {**found, "moe.losses.load_balance.coefficient": coefficient}


def bias(rate: float) -> dict[str, Any]:
    """The bias with a rate that falls to 0 over the run."""
    schedule = f"moe.router.bias_rate = linear({rate:g}, 0, {FLAGS.steps})"
    return {**of("loss_free"), "schedules": (schedule,)}


def trained(overrides: dict[str, Any], seed: int) -> dict[str, Any]:
    """Balance and loss of a trained run on its validation split."""
    run, _ = train(experiment_of(overrides, seed, FLAGS.steps))
    metrics = run.evaluate()
    names = ("max_violation", "dead_experts", "load_cv", "router_entropy")
    return {
        "bits_per_byte": metrics["bits_per_byte"],
        **{name: metrics[f"moe/{name}"] for name in names},
    }


def controlled(start: float, seed: int) -> dict[str, Any]:
    """Active experts per token and layer after each step, from one first coefficient."""
    active: list[list[float]] = []

    def each(step: int, state: Any, result: Any) -> None:
        active.append(np.asarray(result.layers["experts_per_token"]).tolist())

    overrides = of("remoe", initial_lambda=start)
    run, _ = train(experiment_of(overrides, seed, min(FLAGS.steps, 200)), each=each)
    k = run.config.moe.router.k  # type: ignore[attr-defined]
    return {
        "target": k,
        "active_at_150": np.mean(active[140:150], axis=0).tolist(),
        "last": active[-1],
    }


def dropped(seed: int) -> dict[str, Any]:
    """One V-MoE model, evaluated at falling capacity under two orders of service."""
    overrides = of(
        "v_moe",
        {"moe.capacity_factor": 1.5, "moe.losses.importance.coefficient": 0.005},
        {"moe.losses.load.coefficient": 0.005},
        k=1,
    )
    run, _ = train(experiment_of(overrides, seed, FLAGS.steps))
    found: dict[str, Any] = {}
    for order in ("choice_major", "batch_priority"):
        ordered = reordered(run, order)
        found[order] = {
            str(factor): {
                "bits_per_byte": (metrics := with_capacity(ordered, factor).evaluate())[
                    "bits_per_byte"
                ],
                "dropped": metrics["moe/dropped_fraction"],
            }
            for factor in FACTORS
        }
    return found


def reordered(run: LoadedRun, order: str) -> LoadedRun:
    changed = apply_overrides(run.program.experiment, {"moe.router.drop_order": order})
    program = build(changed, run.rows.tokenizer, devices=jax.devices()[:1])
    return replace(run, program=program)


CLAIMS: dict[str, dict[str, Callable[[int], dict[str, Any]]]] = {
    "loss_free": {
        "aux 0.001": lambda seed: trained(aux(0.001), seed),
        "aux 0.01": lambda seed: trained(aux(0.01), seed),
        "bias, rate 0.001": lambda seed: trained(bias(0.001), seed),
        "bias, rate 0.01": lambda seed: trained(bias(0.01), seed),
    },
    "collapse": {
        f"{kind}, {coefficient:g}": lambda seed, kind=kind, coefficient=coefficient: trained(
            of(kind, {"moe.losses.load_balance.coefficient": coefficient}), seed
        )
        for kind in ("mixtral", "switch")
        for coefficient in (0.0, 0.01)
    },
    "priority": {"v_moe": dropped},
    "remoe": {
        f"lambda {value:g}": lambda seed, value=value: controlled(value, seed) for value in LAMBDAS
    },
}


def main(arguments: Arguments) -> int:
    keep_freed_memory()
    for claim in () if FLAGS.table_only else FLAGS.only or CLAIMS:
        for seed in FLAGS.seeds[:1] if claim == "remoe" else FLAGS.seeds:
            for arm, run in CLAIMS[claim].items():
                if seed not in read_figures().get(claim, {}).get(arm, {}):
                    keep(claim, arm, seed, run(int(seed)))
                    jax.clear_caches()
    TEXT.write_text(text(read_figures()))
    print(text(read_figures()))
    return 0


def read_figures() -> dict[str, Any]:
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}


def keep(claim: str, arm: str, seed: str, found: dict[str, Any]) -> None:
    """Read anew: another process may have added other claims meanwhile."""
    figures = read_figures()
    figures.setdefault(claim, {}).setdefault(arm, {})[seed] = found
    figures["steps"] = FLAGS.steps
    FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    print(claim, arm, seed, json.dumps(found)[:300], flush=True)


def text(figures: dict[str, Any]) -> str:
    """The verdicts and their figures in Markdown."""
    lines = ["# What routers do, on several seeds", ""]
    lines += [
        f"`python -m experiments.routers.behaviour`: {figures['steps']} steps of the quickstart on "
        "the planted corpus, evaluated on its validation split. The command writes this page.",
        "",
    ]
    for claim, write in WRITERS.items():
        if claim in figures:
            lines += [*write(figures[claim]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _arms(arms: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    lines = ["| arm | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for arm, by_seed in arms.items():
        cells = [", ".join(f"{x[name]:.3f}" for x in by_seed.values()) for name in names]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def _mean(by_seed: dict[str, Any], name: str) -> float:
    return float(np.mean([x[name] for x in by_seed.values()]))


def _loss_free(arms: dict[str, Any]) -> list[str]:
    rows = _arms(arms, ("max_violation", "bits_per_byte"))
    verdicts = []
    for rate in ("bias, rate 0.001", "bias, rate 0.01"):
        for loss in ("aux 0.001", "aux 0.01"):
            times = _mean(arms[loss], "max_violation") / _mean(arms[rate], "max_violation")
            gap = _mean(arms[rate], "bits_per_byte") - _mean(arms[loss], "bits_per_byte")
            holds = "holds" if times >= 5 and gap <= 0.005 else "does not hold"
            verdicts.append(
                f"- {rate} against {loss}: {times:.1f} times lower max violation, {gap:+.3f} bits "
                f"per byte: {holds}"
            )
    head = "## Loss-free balancing: 5 times lower max violation at no worse loss"
    return [head, "", *rows, "", *verdicts]


def _collapse(arms: dict[str, Any]) -> list[str]:
    rows = _arms(arms, ("max_violation", "load_cv", "dead_experts", "bits_per_byte"))
    verdicts = []
    for kind in sorted({arm.split(",")[0] for arm in arms}):
        without, balanced = (arms[f"{kind}, {c:g}"] for c in (0.0, 0.01))
        apart = min(x["max_violation"] for x in without.values()) > max(
            x["max_violation"] for x in balanced.values()
        )
        found = (
            "every seed without the loss is less balanced than every seed with it"
            if apart
            else "the seeds overlap"
        )
        verdicts.append(f"- {kind}: {found}")
    head = ["## Without a balance loss", "", "Arms: router, coefficient of the balance loss.", ""]
    return [*head, *rows, "", *verdicts]


def _priority(arms: dict[str, Any]) -> list[str]:
    seeds = arms["v_moe"]
    lines = [
        "## Batch priority at low capacity",
        "",
        "Bits per byte of one model a seed, evaluated at each factor; mean over seeds.",
        "",
        "| factor | dropped | by position | batch priority | lower in |",
        "| --- | --- | --- | --- | --- |",
    ]
    for factor in map(str, FACTORS):
        by_order = [
            [x[order][factor]["bits_per_byte"] for x in seeds.values()]
            for order in ("choice_major", "batch_priority")
        ]
        lost = np.mean([x["choice_major"][factor]["dropped"] for x in seeds.values()])
        wins = sum(b < a for a, b in zip(*by_order, strict=True))
        shown = "dropless" if factor == "None" else factor
        a, b = (float(np.mean(values)) for values in by_order)
        lines.append(f"| {shown} | {lost:.1%} | {a:.3f} | {b:.3f} | {wins} of {len(seeds)} |")
    return lines


def _remoe(arms: dict[str, Any]) -> list[str]:
    E = experiment_of(of("remoe"), 0, FLAGS.steps).moe.num_experts
    lines = [
        "## ReMoE's controller",
        "",
        "Active experts per token in each layer, mean of steps 141-150, and the sparsity 1 - "
        "active / experts over all layers; reached: within 0.05 of the target.",
        "",
        "| first coefficient | active experts, by layer | sparsity | target | reached |",
        "| --- | --- | --- | --- | --- |",
    ]
    reached = []
    for arm, by_seed in sorted(arms.items(), key=lambda item: float(item[0].split()[1])):
        for x in by_seed.values():
            layers = ", ".join(f"{value:.2f}" for value in x["active_at_150"])
            sparsity, target = 1 - np.mean(x["active_at_150"]) / E, 1 - x["target"] / E
            near = abs(sparsity - target) <= 0.05
            reached += [float(arm.split()[1])] if near else []
            lines.append(
                f"| {arm.split()[1]} | {layers} | {sparsity:.3f} | {target:.3f} | "
                f"{'yes' if near else 'no'} |"
            )
    if reached:
        decades = np.log10(max(reached) / min(reached))
        lines += ["", f"Reached within 150 steps over {decades:.0f} decades of the coefficient."]
    return lines


WRITERS = {
    "loss_free": _loss_free,
    "collapse": _collapse,
    "priority": _priority,
    "remoe": _remoe,
}


if __name__ == "__main__":
    sys.exit(run_door(main, usage=__doc__ or "", flags=FLAGS))
