"""What experiments.routers.run trains, and the table that it writes."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import jax

from experiments.pages import between
from experiments.routers.arms import ARMS
from experiments.routers.trial import describe, experiment_of, stepper, train
from moe_jax.cli import Arguments
from moe_jax.config.errors import UserError
from moe_jax.config.paths import write_whole
from moe_jax.parallel.host_memory import keep_freed_memory

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
DOCS = HERE.parents[1] / "docs" / "routers.md"
BEGIN, END = "<!-- begin: experiments.routers.run -->\n", "<!-- end -->\n"
REFERENCE = "mixtral"


def main(arguments: Arguments) -> int:
    flags = arguments.flags
    if not flags.table_only:
        wanted = flags.only or list(ARMS)
        if unknown := [name for name in wanted if name not in ARMS]:
            raise UserError(f"--only={unknown[0]}: there are {', '.join(ARMS)}")
        keep_freed_memory()
        train_all(wanted, [int(seed) for seed in flags.seeds], flags.steps, again=flags.again)
    write_table(read_results())
    return 0


def read_results() -> dict[str, Any]:
    if RESULTS.exists():
        return json.loads(RESULTS.read_text("utf-8"))
    return {"arms": {}}


def train_all(names: list[str], seeds: list[int], steps: int, *, again: bool) -> None:
    reference = stepper(experiment_of(ARMS[REFERENCE], 0, steps))
    for seed in seeds:
        for name in names:
            results = read_results()
            if str(seed) in results["arms"].get(name, {}) and not again:
                continue
            experiment = experiment_of(ARMS[name], seed, steps)
            run, watch = train(experiment, reference=reference)
            found = describe(run)
            found |= {
                "steps": steps,
                "ms_per_step": statistics.median(watch.own),
                "step_time_ratio": watch.ratio,
                "parameters": run.program.counts.total,
            }
            results = read_results()
            results["floor"] = floor(run)
            results["arms"].setdefault(name, {})[str(seed)] = found
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            shown = {key: found[key] for key in ("bits_per_byte", "max_violation", "ms_per_step")}
            print(name, seed, {key: round(value, 3) for key, value in shown.items()}, flush=True)
            jax.clear_caches()


def floor(run: Any) -> float:
    """Bits per symbol of the best predictor of the planted corpus, on the validation rows."""
    rows = run.rows
    nats = run.config.data.process.optimal_cross_entropy(rows.tokens)
    return nats / 0.6931471805599453


COLUMNS = (
    ("bits per byte", lambda x: x["bits_per_byte"], ".3f"),
    ("max violation", lambda x: x["max_violation"], ".2f"),
    ("experts per token", lambda x: x["experts_per_token"], ".2f"),
    ("drops at 1.25", lambda x: x["dropped_at_1.25"], ".1%"),
    ("leak: routes changed, evaluation / training", lambda x: x["leak"]["routes_changed"], ".1%"),
    ("", lambda x: x["training_leak"]["routes_changed"], ".1%"),
    ("leak in nats", lambda x: x["training_leak"]["nats"], ".4f"),
    ("specialisation", lambda x: statistics.fmean(x["specialisation"]), ".2f"),
    ("step time / mixtral", lambda x: x["step_time_ratio"], ".2f"),
)


def table(results: dict[str, Any]) -> str:
    """The table in Markdown; means over seeds."""
    arms = {name: results["arms"][name] for name in ARMS if name in results["arms"]}
    steps = sorted({x["steps"] for by_seed in arms.values() for x in by_seed.values()})
    seeds = sorted({int(seed) for by_seed in arms.values() for seed in by_seed})
    message = (
        f"{' or '.join(map(str, steps))} steps of 4096 tokens of the planted corpus (8 sources; "
        f"the best possible predictor has {results['floor']:.3f} bits per byte), quickstart size, "
        f"seeds {', '.join(map(str, seeds))}. Leak: share of earlier tokens whose routes change "
        "when later tokens are replaced, routed as in evaluation / as in training; in nats: what "
        "the model gains by the true future, routed as in training. Specialisation: "
        "I(source; expert) / H(source), mean over layers. Step time: median against steps of "
        f"`mixtral` in between ({reference_ms(arms):.0f} ms), on 2 CPU cores."
    )
    lines = [message, ""]
    shown = [title for title, _, _ in COLUMNS if title]
    lines.append("| arm | " + " | ".join(shown) + " |")
    lines.append("| --- |" + " --- |" * len(shown))
    for name, by_seed in arms.items():
        cells: list[str] = []
        for title, value, form in COLUMNS:
            values = [value(x) for x in by_seed.values()]
            known = [x for x in values if x is not None]
            cell = format(statistics.fmean(known), form) if known else "-"
            if title:
                cells.append(cell)
            else:
                cells[-1] += f" / {cell}"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def reference_ms(arms: dict[str, Any]) -> float:
    return statistics.fmean(x["ms_per_step"] for x in arms[REFERENCE].values())


def write_table(results: dict[str, Any]) -> None:
    write_whole(DOCS, between(DOCS, table(results), BEGIN, END))
