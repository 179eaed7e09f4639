"""The sections of the page, each left out where the runs have nothing to show in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeVar

import numpy as np

from moe_jax.analysis.read_run import RunRecord, layer_name, layer_of
from moe_jax.analysis.report import heat_map
from moe_jax.analysis.report.catalogue import LEARNING, METRICS, ROUTING, SPEED, metric
from moe_jax.analysis.report.curves import (
    constants,
    curves,
    difference_curves,
    experts_of,
    layer_curves,
    steps_of,
)
from moe_jax.analysis.report.frame import figure
from moe_jax.analysis.report.numbers import formatted
from moe_jax.analysis.report.tables import (
    all_metrics,
    capacity,
    chip,
    difference_table,
    facts,
    last_lists,
    layer_metrics,
    ordered,
    shares_table,
    summary_table,
    table,
    tiles,
)

T = TypeVar("T")

CELLS = 150_000  # of all heat maps over time together: keeps the page below a megabyte
COLUMNS = (24, 120)  # fewest and most of one heat map
# Lists of a number per expert, shown as layers by experts.
PER_EXPERT = {"load": "Load", "gate_mass": "Gate mass", "expert_grad_norm": "Gradient norm"}
# Lists of shares by something else: what the columns are.
PER_PLACE = {
    "dropped_by_rank": ("Dropped, by rank of choice", "choice"),
    "dropped_by_position": ("Dropped, by place in the row", "eighth of the row"),
    "experts_histogram": ("Experts that a token got", "experts"),
}
NAMES = {"eval": "evaluation", "train": "training"}
OF_DOMAIN = re.compile(r"domain/(.+)/([^/]+)")
BY_LAYER = ("moe/max_violation", "moe/router_entropy", "moe/dropped_fraction", "moe/probe/churn")


@dataclass(frozen=True)
class Section:
    """A part of the page. id: of its link."""

    id: str
    title: str
    html: str


# (id, title, what draws it): one that gives no text has nothing to show.
Rows = Sequence[tuple[str, str, Callable[[T], str]]]


def drawn(rows: Rows[T], of: T) -> list[Section]:
    """The sections of a table that have something to show, in its order."""
    found = (Section(id, title, draw(of)) for id, title, draw in rows)
    return [section for section in found if section.html]


def sections(runs: Sequence[RunRecord]) -> list[Section]:
    """What a page has of any runs, in reading order."""
    return drawn(SECTIONS, runs)


def _summary(runs: Sequence[RunRecord]) -> str:
    if len(runs) == 1:
        return tiles(runs[0])
    return (
        f"{summary_table(runs)}<p>Last values of evaluations (eval) and of training (train), "
        "which may have another capacity; throughput is the median. The best value of a column "
        f"is bold.</p>{_capacities(runs)}{_unequal_steps(runs)}"
        "<h3>Differences between the configs</h3>"
        f"{difference_table(runs, [run.config for run in runs])}"
    )


def _capacities(runs: Sequence[RunRecord]) -> str:
    """The capacity of each run in evaluations and in training."""
    found = []
    for run in runs:
        each = [f"{name} {text}" for split, name in NAMES.items() if (text := capacity(run, split))]
        if each:
            found.append(f"{run.name}: {', '.join(each)}")
    return f"<p>Capacity. {escape('; '.join(found))}.</p>" if found else ""


def _unequal_steps(runs: Sequence[RunRecord]) -> str:
    """A warning where a step is not the same amount of data in all runs."""
    found = []
    for run in runs:
        rows, data = run.config.get("batch_size"), run.config.get("data", {})
        length = data.get("sequence_length") if isinstance(data, dict) else None
        found.append(rows * length if rows and length else None)
    if len(set(found) - {None}) < 2:
        return ""
    tokens_text = ", ".join(
        f"{run.name} {tokens:,}" for run, tokens in zip(runs, found, strict=True) if tokens
    )
    return f"<p>A step is not the same amount of data: tokens a step are {escape(tokens_text)}.</p>"


def _learning(runs: Sequence[RunRecord]) -> str:
    def has(name: str) -> bool:
        return name == "cross_entropy" or any(run.get(name) is not None for run in runs)

    has_bits = has("bits_per_byte")
    names = [name for name in LEARNING if not (name == "perplexity" and has_bits)]
    extra = []
    if len(runs) > 1:
        compared = next(
            name for name in ("bits_per_byte", "macro_f1", "cross_entropy") if has(name)
        )
        extra = [html for html in [difference_curves(runs, compared)] if html]
    return _charts(runs, names, extra)


def _routing(runs: Sequence[RunRecord]) -> str:
    html = _charts(runs, ROUTING)
    dense = [run.name for run in runs if not _is_sparse(run)]
    if html and dense:
        html += f"<p>Without experts, so not shown here: {escape(', '.join(dense))}.</p>"
    return html


def _is_sparse(run: RunRecord) -> bool:
    return any(name.startswith("moe/") for name in run.names())


def _unknown(runs: Sequence[RunRecord]) -> list[str]:
    """Scalar metrics of the whole model that the catalogue does not know, but for those of one
    domain, which have a table."""
    names = ordered(name for run in runs for name in run.names())
    return [
        name
        for name in names
        if name not in METRICS and layer_of(name)[0] is None and not OF_DOMAIN.fullmatch(name)
    ]


def _domains(runs: Sequence[RunRecord]) -> str:
    """Last evaluation of each domain (a pair of languages, say), those with most rows first."""
    found: dict[str, list[str]] = {}  # the metrics of each domain
    for run in runs:
        for name in run.names():
            if match := OF_DOMAIN.fullmatch(name):
                found.setdefault(match[1], []).append(match[2])
    if not found:
        return ""
    sizes = {name: n for run in runs for name, n in run.rows_by_domain.items()}
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    head = ["domain", *(["training rows"] if sizes else [])]
    head += [
        escape(metric(name).title) + ("<br/>" + chip(run, number) if len(runs) > 1 else "")
        for name in names
        for number, run in enumerate(runs)
    ]
    rows = []
    for domain in sorted(found, key=lambda domain: (-sizes.get(domain, 0), domain)):
        cells = [escape(domain), *([f"{sizes.get(domain, 0):,}"] if sizes else [])]
        for name in names:
            for run in runs:
                series = run.get(f"domain/{domain}/{name}", "eval")
                value = None if series is None else series.last
                cells.append(formatted(value, metric(name).percent))
        rows.append(cells)
    return table(head, rows, kind="numbers")


def _charts(runs: Sequence[RunRecord], names: Iterable[str], extra: Sequence[str] = ()) -> str:
    """A figure for each metric that changes, a sentence on those that never do."""
    figures, unchanging = [], []
    for name in names:
        found = [series for run in runs if (series := run.get(name)) is not None]
        if not found or any(series.values.ndim > 1 for series in found):
            continue
        values = constants(runs, name)
        if values is None:
            figures.append(curves(runs, name))
        else:
            unchanging.append(_constant(runs, name, values))
        if len(figures) == 2 and extra:
            figures, extra = [*figures, *extra], ()
    html = f'<div class="grid charts">{"".join([*figures, *extra])}</div>' if figures else ""
    if unchanging:
        html += f'<p class="constants">The same at every step: {"".join(unchanging)}</p>'
    return html


def _speed(runs: Sequence[RunRecord]) -> str:
    return _charts(runs, SPEED)


def _other(runs: Sequence[RunRecord]) -> str:
    return _charts(runs, _unknown(runs))


def _constant(runs: Sequence[RunRecord], name: str, values: Sequence[float | None]) -> str:
    """A metric that never changes, as one number or one a run."""
    entry = metric(name)
    if len({value for value in values if value is not None}) == 1:
        text = formatted(next(value for value in values if value is not None), entry.percent)
    else:
        text = ", ".join(
            f"{run.name} {formatted(value, entry.percent)}"
            for run, value in zip(runs, values, strict=True)
            if value is not None
        )
    meaning = escape(entry.meaning)
    return f'<span title="{meaning}"><b>{escape(entry.title)}</b> {escape(text)}</span>'


def _load(runs: Sequence[RunRecord]) -> str:
    sparse = [(number, run) for number, run in enumerate(runs) if run.layers("load")]
    if not sparse:
        return ""
    intro = (
        "<p>The share of the assignments that each expert is wanted for, before drops, relative to "
        "an even share (1/E). Balanced is the colour of 1 everywhere; warm experts are overloaded, "
        "cold ones starve, and one warm stripe among cold ones is a collapse.</p>"
    )
    scale = heat_map.scale("times the even share")
    maps = _at_the_end(runs, sparse) + _over_time(runs, sparse)
    return intro + scale + maps + _places(runs)


def _at_the_end(runs: Sequence[RunRecord], sparse: Sequence[tuple[int, RunRecord]]) -> str:
    """Layers by experts, for the load and every other metric with a number per expert."""
    found = {
        name: [(number, run) for number, run in sparse if run.layers(name)]
        for name in _names_per_expert(runs)
    }
    if len(runs) == 1:
        panels = [_matrix(runs[0], name, None, 1) for name in found]
        return f"<h3>At the end</h3>{_side_by_side(panels, 1)}"
    rows = (
        f"<h3>{escape(PER_EXPERT.get(name, name))} at the end</h3>"
        + _side_by_side(
            [_matrix(run, name, number, max(len(sparse), 2)) for number, run in having],
            max(len(sparse), 2),
        )
        for name, having in found.items()
    )
    return "".join(rows)


def _names_per_expert(runs: Sequence[RunRecord]) -> list[str]:
    """Metrics of layers with a number per expert, the load first."""
    names = {
        name
        for run in runs
        for full in run.names()
        for layer, name in [layer_of(full)]
        if layer is not None and run[full].values.ndim > 1
    }
    return sorted(names - set(PER_PLACE), key=lambda name: (name != "load", name))


def _places(runs: Sequence[RunRecord]) -> str:
    """Shares by rank of choice, place in the row, number of experts: a table each, where it says
    anything (nothing is dropped, or every token got k experts: it does not)."""
    html = []
    for name, (title, what) in PER_PLACE.items():
        for number, run in enumerate(runs):
            shares = last_lists(run, name)
            if not shares or all(np.ptp(row) == 0 or max(row) == 1 for row in shares.values()):
                continue
            heading = f"<h3>{escape(title)}</h3>"
            own = None if len(runs) == 1 else number
            first = 0 if name == "experts_histogram" else 1
            html.append(heading + _titled(what, shares_table(shares, first), run, own))
    return "".join(html)


def _matrix(run: RunRecord, name: str, number: int | None, beside: int) -> str:
    layers = run.layers(name)
    split = "eval" if ("eval", layer_name(layers[0], name)) in run.series else "train"
    found = [run.series[split, layer_name(layer, name)] for layer in layers]
    rows = np.full((len(layers), max(series.values.shape[1] for series in found)), np.nan)
    for row, series in zip(rows, found, strict=True):
        row[: series.values.shape[1]] = heat_map.relative(series.values[-1])
    what, where = PER_EXPERT.get(name, name), NAMES[split]
    title = f"{what}, {where}, step {int(found[0].steps[-1]):,}"
    return _titled(title, heat_map.matrix(rows, layers, what, beside), run, number)


def _over_time(runs: Sequence[RunRecord], sparse: Sequence[tuple[int, RunRecord]]) -> str:
    """Experts over steps, a panel for each layer and run, runs beside each other."""
    cells = sum(sum(experts_of(run).values()) for _, run in sparse)
    columns = min(max(CELLS // cells, COLUMNS[0]), COLUMNS[1])
    maps = {
        (layer, number): heat_map.in_columns(run[layer_name(layer, "load")], columns)
        for number, run in sparse
        for layer in run.layers("load")
    }
    ends = [columns.ends for columns in maps.values()]
    steps = min(start for start, _ in ends), max(end for _, end in ends)
    panels = []
    for layer in sorted({layer for layer, _ in maps}):
        for number, run in sparse:
            found, title = maps.get((layer, number)), f"Layer {layer}"
            html = "<p>No experts in this layer.</p>"
            if found is not None:
                html = heat_map.over_time(found, title, steps)
            panels.append(_titled(title, html, run, number if len(runs) > 1 else None))
    return f"<h3>Load over the steps</h3>{_side_by_side(panels, len(sparse))}"


def _titled(title: str, html: str, run: RunRecord, number: int | None) -> str:
    head = "" if number is None else chip(run, number)
    return figure(title, head, html, kind="panel")


def _side_by_side(panels: Sequence[str], runs: int) -> str:
    """Panels in a grid, the runs of a comparison in columns of their own."""
    kind = f"of-{min(runs, 4)}" if runs > 1 else ("small" if len(panels) > 2 else "large")
    return f'<div class="grid {kind}">{"".join(panels)}</div>'


def _by_layer(runs: Sequence[RunRecord]) -> str:
    """Of several runs: the layers of each, a row a metric. (A single run shows them above.)"""
    if len(runs) == 1:
        return ""
    blocks = []
    for name in BY_LAYER:
        having = [
            (number, run)
            for number, run in enumerate(runs)
            if run.layers(name.removeprefix("moe/")) and run.get(name) is not None
        ]
        if not having or constants(runs, name) is not None:
            continue
        entry = metric(name)
        figures = layer_curves(having, name, steps_of(runs))
        head = f"<h3>{escape(entry.title)}</h3><p>{escape(entry.meaning)}</p>"
        blocks.append(f"{head}{_side_by_side(figures, max(len(figures), 2))}")
    return "".join(blocks)


def _numbers(runs: Sequence[RunRecord]) -> str:
    html = _folded("Last value of every metric", all_metrics(runs))
    for run in runs:
        title = "Last value in every layer" + (f": {run.name}" if len(runs) > 1 else "")
        rows = layer_metrics(run)
        html += _folded(title, rows) if rows else ""
    return html


def _config(runs: Sequence[RunRecord]) -> str:
    html = ""
    if len(runs) > 1:
        differences = difference_table(runs, [run.environment for run in runs])
        html += _folded("Differences between the environments", differences)
    for run in runs:
        of_run = f": {run.name}" if len(runs) > 1 else ""
        html += _folded(f"Config{of_run}", facts(run.config))
        html += _folded(f"Environment{of_run}", facts(run.environment))
    return html


def _folded(title: str, html: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{html}</details>"


SECTIONS: Rows[Sequence[RunRecord]] = (
    ("summary", "Summary", _summary),
    ("learning", "Learning", _learning),
    ("domains", "By domain", _domains),
    ("load", "Expert load", _load),
    ("routing", "Routing", _routing),
    ("layers", "Layer by layer", _by_layer),
    ("speed", "Speed", _speed),
    ("other", "Other metrics", _other),
    ("numbers", "All numbers", _numbers),
    ("config", "Config and environment", _config),
)
