"""Sparse models of small tasks beside their iso-FLOP dense twins, over paired seeds, with baselines
that a reader would ask for.

    python -m experiments.tasks.twins --out=runs/twins [--seeds=3] [--only=sentiment] [--record]

Each run is one process after the other; a run that is complete is not run again. The tables are
printed as Markdown and written to OUT/twins.json; --record keeps them in experiments/tasks/results,
from which `python -m experiments.tasks.page` makes docs/applications.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.tasks.applications import APPLICATIONS, Application

ARMS = ("sparse", "dense")
RESULTS = Path(__file__).parent / "results"


def trained(config: str, workdir: Path, seed: int, settings: tuple[str, ...]) -> dict[str, float]:
    """The last evaluation of a run, which is trained, or goes on, where it is not there."""
    from moe_jax.analysis.read_run import read_metrics
    from moe_jax.sweeps.table import evaluated, final_metrics

    told = workdir / "config.json"
    if not told.is_file() or not evaluated(workdir, _steps(told)):
        train = [sys.executable, "-m", "moe_jax.train", f"--config={config}"]
        flags = [f"--workdir={workdir}", f"--config.seed={seed}", *settings]
        subprocess.run([*train, *flags], check=True)
    return final_metrics(read_metrics(workdir), _steps(told))


def _steps(config: Path) -> int:
    return json.loads(config.read_text("utf-8"))["steps"]


def compared(one: Application, name: str, seeds: int, out: Path) -> dict[str, Any]:
    """What is recorded of an application: the metrics of each run without those of single domains,
    targets and layers but for the one that arms are compared by, the baselines, and what the runs
    were and at which commits."""
    from experiments.record import commits, environment
    from moe_jax.config.overrides import load_config
    from moe_jax.data.types import SPLITS
    from moe_jax.training.experiment import Experiment

    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    environments = []
    for seed in range(seeds):
        for arm, config in one.configs().items():
            workdir = out / f"{name}-{arm}-{seed}"
            run = trained(config, workdir, seed, one.settings)
            found[arm].append({n: x for n, x in run.items() if "/" not in n or n == one.metric})
            environments.append(environment(workdir))
    data = load_config(one.configs()["sparse"], (), Experiment).data
    train, held = (data.open(split) for split in SPLITS)
    rules = {"trivial": one.trivial, "simple": one.simple}
    told = json.loads((out / f"{name}-sparse-0" / "config.json").read_text("utf-8"))
    return {
        "commits": commits(one.get("git") for one in environments),
        "model": told["model"]["kind"],
        "configs": one.configs(),
        "steps": told["steps"],
        "settings": list(one.settings),
        "runs": found,
        "baselines": {
            kind: {title: rule(train, held, out) for title, rule in of_kind.items()}
            for kind, of_kind in rules.items()
        },
    }


def table(name: str, found: dict[str, Any]) -> str:
    """Markdown."""
    from moe_jax.sweeps.statistics import paired, student

    runs = found["runs"]
    lines = [f"| {name} | sparse | dense | sparse - dense, paired |", "| --- | --- | --- | --- |"]
    for metric in runs["sparse"][0]:
        if metric in ("step", "loss"):
            continue
        sparse, dense = ([m[metric] for m in runs[arm]] for arm in ARMS)
        difference = student(paired(dict(enumerate(sparse)), dict(enumerate(dense))))
        means = [student(values).mean for values in (sparse, dense)]
        message = f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
        lines.append(f"| {metric} | {means[0]:.4f} | {means[1]:.4f} | {message} |")
    rules = {title: x for of_kind in found["baselines"].values() for title, x in of_kind.items()}
    others = ", ".join(f"{title} {value:.4f}" for title, value in rules.items())
    return "\n".join([*lines, "", f"Means of {len(runs['sparse'])} seeds. Baselines: {others}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/twins")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=sorted(APPLICATIONS))
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be at least 2: an interval needs differences")
    out = Path(arguments.out)
    results = {}
    for name in [arguments.only] if arguments.only else sorted(APPLICATIONS):
        results[name] = compared(APPLICATIONS[name], name, arguments.seeds, out)
        print(table(name, results[name]), flush=True)
        if arguments.record:
            RESULTS.mkdir(exist_ok=True)
            text = json.dumps(results[name], indent=1) + "\n"
            (RESULTS / f"{name}.json").write_text(text, "utf-8")
    (out / "twins.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
