"""Tables of the report: figures of a run at its end, configs, environments."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

from moe_jax.analysis.read_run import SPLITS, RunRecord, layer_name, layer_of
from moe_jax.analysis.report.catalogue import METRICS, SPEED, metric
from moe_jax.analysis.report.curves import experts_of
from moe_jax.analysis.report.numbers import formatted
from moe_jax.config.diff import ABSENT, difference
from moe_jax.config.json_files import Json, JsonObject

# What one looks at first. Of the same name an evaluation and training say different things: their
# capacity may be another, and with it what is dropped.
SUMMARY = {
    "eval": (
        # What each task puts first (its headlines).
        "bits_per_byte",
        "bleu",
        "average_precision",
        "mean_iou",
        "auc",
        "ndcg_at_10",
        "mean_average_precision",
        "micro_f1",
        "accuracy",
        "cross_entropy",
        "detection_loss",
        "mean_squared_error",
        "macro_f1",
        "moe/max_violation",
        "moe/dropped_fraction",
        "moe/overflow_fraction",
    ),
    "train": (
        "cross_entropy",
        "moe/max_violation",
        "moe/dropped_fraction",
        "moe/overflow_fraction",
        "moe/dead_experts",
        "moe/probe/churn",
        "tokens_per_s",
    ),
}
SPLIT_NAMES = {"eval": "Evaluation", "train": "Training"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML. The first column holds the rows' names."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def chip(run: RunRecord, number: int) -> str:
    """A run's name with its colour."""
    return f'<span class="chip run-{number % 8}"><i></i>{escape(run.name)}</span>'


def progress(run: RunRecord) -> str:
    """How far the run is: "250 of 400"."""
    total = run.config.get("steps")
    return f"{run.last_step:,} of {total:,}" if isinstance(total, int) else f"{run.last_step:,}"


def final(run: RunRecord, split: str, name: str) -> float | None:
    """What a summary says of a metric: its last value, or the median of a speed, of which a single
    value says little. What never was anything but 0 (an overflow) is left out."""
    series = run.series.get((split, name))
    if series is None or series.values.ndim > 1:
        return None
    if name == "moe/overflow_fraction" and not np.any(series.values):
        return None
    if name in SPEED:
        finite = series.values[np.isfinite(series.values)]
        return float(np.median(finite)) if finite.size else None
    return series.last


def tiles(run: RunRecord) -> str:
    """The figures of a single run that one looks at first, of the evaluation and of training."""
    html = ""
    for split, names in SUMMARY.items():
        cells = []
        for name in names:
            value = final(run, split, name)
            if value is not None:
                entry = metric(name)
                cells.append(
                    (entry.title, formatted(value, entry.percent), _source(run, split, name))
                )
        if cells:
            html += f"<h3>{escape(_titled_split(run, split))}</h3>{_tiles(cells)}"
    return html


def _tiles(cells: Sequence[tuple[str, str, str]]) -> str:
    return '<div class="tiles">{}</div>'.format(
        "".join(
            f"<div><span>{escape(title)}</span><strong>{escape(value)}</strong>"
            f"<small>{escape(source)}</small></div>"
            for title, value, source in cells
        )
    )


def _titled_split(run: RunRecord, split: str) -> str:
    """ "Training, step 400 of 400, capacity factor 1.25"."""
    last = last_step(run, split)
    total = run.config.get("steps")
    of = f" of {total:,}" if isinstance(total, int) else ""
    parts = (SPLIT_NAMES[split], f"step {last:,}{of}", capacity(run, split))
    return ", ".join(part for part in parts if part)


def last_step(run: RunRecord, split: str) -> int:
    return max(int(series.steps[-1]) for (own, _), series in run.series.items() if own == split)


def capacity(run: RunRecord, split: str) -> str:
    """What bounds how many tokens an expert takes; "" where that is not known."""
    factor = run.series.get((split, "moe/capacity_factor"))
    if factor is not None:
        return f"capacity factor {factor.last:g}"
    dropped = run.series.get((split, "moe/dropped_fraction"))
    return "dropless" if dropped is not None and not np.any(dropped.values) else ""


def _source(run: RunRecord, split: str, name: str) -> str:
    """What a tile's value is beside the last one of its split."""
    if name in SPEED:
        return "median"
    if name == "moe/dead_experts" and experts_of(run):
        return f"of {max(experts_of(run).values())}, mean of layers"
    step = int(run.series[split, name].steps[-1])
    return "" if step == last_step(run, split) else f"step {step:,}"


def is_finished(run: RunRecord) -> bool:
    total = run.config.get("steps")
    return isinstance(total, int) and run.last_step >= total


def summary_table(runs: Sequence[RunRecord]) -> str:
    """A row a run; the best of a column is marked where better has one direction."""
    keys = [
        (split, name)
        for split, names in SUMMARY.items()
        for name in names
        if any(final(run, split, name) is not None for run in runs)
    ]
    marked = {key: _best([final(run, *key) for run in runs], metric(key[1]).best) for key in keys}
    rows = []
    for number, run in enumerate(runs):
        cells = [chip(run, number), progress(run)]
        for key in keys:
            text = formatted(final(run, *key), metric(key[1]).percent)
            cells.append(f"<strong>{text}</strong>" if number in marked[key] else text)
        rows.append(cells)
    titles = [f"{escape(metric(name).title)}<br/>{split}" for split, name in keys]
    return table(["run", "step", *titles], rows, kind="numbers summary")


def _best(values: Sequence[float | None], direction: str | None) -> set[int]:
    there = [value for value in values if value is not None and not math.isnan(value)]
    if direction is None or len(there) < 2:
        return set()
    best = min(there) if direction == "min" else max(there)
    return {number for number, value in enumerate(values) if value == best}


def all_metrics(runs: Sequence[RunRecord]) -> str:
    """The last value of every metric over the whole model, of every run and split."""
    names = ordered(name for run in runs for name in run.names() if layer_of(name)[0] is None)
    splits = [split for split in SPLITS if any((split, n) in r.series for r in runs for n in names)]
    head = ["metric"] + [
        f"{escape(run.name)}<br/>{split}" if len(runs) > 1 else split
        for run in runs
        for split in splits
    ]
    rows = []
    for name in names:
        cells = []
        for run in runs:
            for split in splits:
                series = run.series.get((split, name))
                value = None if series is None or series.values.ndim > 1 else series.last
                cells.append(formatted(value, metric(name).percent))
        rows.append([_named(name), *cells])
    return table(head, rows, kind="numbers")


def layer_metrics(run: RunRecord) -> str:
    """The last value of every scalar metric of every layer; "" for a dense run."""
    found: dict[str, dict[int, str]] = {}
    for full in run.names():
        layer, name = layer_of(full)
        series = run.at_the_end(full)
        if layer is not None and series is not None and series.values.ndim == 1:
            found.setdefault(name, {})[layer] = formatted(
                series.last, metric(f"moe/{name}").percent
            )
    layers = sorted({layer for row in found.values() for layer in row})
    if not layers:
        return ""
    names = [name.removeprefix("moe/") for name in ordered(f"moe/{name}" for name in found)]
    rows = [
        [_named(f"moe/{name}"), *(found[name].get(layer, "–") for layer in layers)]
        for name in names
    ]
    return table(["layer", *map(str, layers)], rows, kind="numbers")


def last_lists(run: RunRecord, name: str) -> dict[int, list[float]]:
    """By layer the last list of a metric, of the evaluation where it is there."""
    found = {layer: run.at_the_end(layer_name(layer, name)) for layer in run.layers(name)}
    return {layer: series.values[-1].tolist() for layer, series in found.items() if series}


def shares_table(shares: Mapping[int, Sequence[float]], first: int) -> str:
    """Layers by columns, numbered from `first`, in percent."""
    width = max(map(len, shares.values()))
    rows = [
        [f"layer {layer}", *(formatted(value, True) for value in row), *["–"] * (width - len(row))]
        for layer, row in shares.items()
    ]
    return table(["", *(str(first + i) for i in range(width))], rows, kind="numbers")


def ordered(names: Iterable[str]) -> list[str]:
    """Each name once: those of the catalogue in its order, then the others."""
    found = dict.fromkeys(names)
    return [name for name in METRICS if name in found] + [n for n in found if n not in METRICS]


def _named(name: str) -> str:
    return f'<code title="{escape(metric(name).meaning)}">{escape(name)}</code>'


def leaves(tree: Mapping[str, Json], prefix: str = "") -> JsonObject:
    """Dotted path -> value; a list and an empty object are values."""
    flat: JsonObject = {}
    for name, value in tree.items():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(value, Mapping) and value:
            flat |= leaves(value, path)
        else:
            flat[path] = value
    return flat


def _text(value: object) -> str:
    if value is ABSENT:
        return "–"
    return value if isinstance(value, str) else json.dumps(value)


def differing(trees: Sequence[Mapping[str, Json]]) -> dict[str, list[str]]:
    """Path -> value in each tree, of the paths where they are not all equal.

    Equality is that of config.diff.difference: 1 and 1.0 are equal.
    """
    flat = [leaves(tree) for tree in trees]
    paths = dict.fromkeys(path for values in flat for path in values)
    rows = {path: [values.get(path, ABSENT) for values in flat] for path in paths}
    return {
        path: [_text(value) for value in values]
        for path, values in rows.items()
        if any(difference({path: values[0]}, {path: value}) for value in values[1:])
    }


def difference_table(runs: Sequence[RunRecord], trees: Sequence[Mapping[str, Json]]) -> str:
    """What differs, a column a run; a sentence where nothing does."""
    rows = differing(trees)
    if not rows:
        return "<p>No difference.</p>"
    return table(
        ["", *(chip(run, number) for number, run in enumerate(runs))],
        ([f"<code>{escape(path)}</code>", *map(escape, values)] for path, values in rows.items()),
        kind="differences",
    )


def facts(tree: Mapping[str, Json]) -> str:
    """A whole config or environment, path by path."""
    if not tree:
        return "<p>Not in this folder.</p>"
    items = "".join(
        f"<div><dt>{escape(path)}</dt><dd>{escape(_text(value))}</dd></div>"
        for path, value in leaves(tree).items()
    )
    return f'<dl class="facts">{items}</dl>'
