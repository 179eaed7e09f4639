"""A figure of one metric: of one run with its layers, or of several runs over each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moe_jax.analysis.read_run import RunRecord, Series, layer_name
from moe_jax.analysis.report.catalogue import Metric, metric
from moe_jax.analysis.report.frame import figure, key, legend, run_colour
from moe_jax.analysis.report.line_chart import Line, line_chart

TRAIN, EVAL = "var(--train)", "var(--eval)"  # of a single run; of several, colour means the run


def curves(runs: Sequence[RunRecord], name: str) -> str:
    """The figure of a metric in all runs that have it; with one run also of each layer."""
    chosen = [run for run in runs if run.get(name) is not None]
    entry = metric(name)
    lines, keys = _one_run(chosen[0], name) if len(runs) == 1 else _several(runs, name)
    return _figure(entry.title, entry, chosen, lines, keys, steps_of(runs))


def layer_curves(
    runs: Sequence[tuple[int, RunRecord]], name: str, steps: tuple[int, int]
) -> list[str]:
    """A figure for each (number, run) with its layers, all with the same axes."""
    drawn = [_one_run(run, name) for _, run in runs]
    values = np.concatenate([line.series.values for lines, _ in drawn for line in lines])
    ends = (float(np.nanmin(values)), float(np.nanmax(values))) if np.isfinite(values).any() else ()
    entry = replace(metric(name), meaning="", include=(*metric(name).include, *ends))
    return [
        _figure(run.name, entry, [run], lines, keys, steps, kind=f"chart run run-{number % 8}")
        for (number, run), (lines, keys) in zip(runs, drawn, strict=True)
    ]


def difference_curves(runs: Sequence[RunRecord], name: str) -> str | None:
    """Evaluation of each run minus the first run's, at the steps both have; None without any."""
    base, *others = (run.get(name, "eval") for run in runs)
    lines, keys = [], []
    for number, other in enumerate(others, start=1):
        if base is None or other is None:
            continue
        common, of_base, of_other = np.intersect1d(base.steps, other.steps, return_indices=True)
        if common.size == 0:
            continue
        gap = Series(common, other.values[of_other] - base.values[of_base])
        lines.append(Line(runs[number].name, gap, run_colour(number), "eval"))
        keys.append(key(runs[number].name, run_colour(number)))
    if not lines:
        return None
    plot, cut = line_chart(lines, steps_of(runs), references=(0.0,), early=True)
    what = f"Evaluation, minus {runs[0].name} at the same step. Below 0 is better than it"
    return figure(
        f"{metric(name).title}: difference",
        legend(*keys, key(f"{runs[0].name}: 0", "var(--muted)", "dashed")),
        plot,
        caption=f"{what}; where a curve crosses 0 the order of the runs changes.{_cut(cut)}",
    )


def steps_of(runs: Sequence[RunRecord]) -> tuple[int, int]:
    """First and last step of every figure's x axis."""
    return 0, max(1, *(run.last_step for run in runs))


def constants(runs: Sequence[RunRecord], name: str) -> list[float | None] | None:
    """A metric's value in each run (None where a run lacks it), if no run ever changes it and at
    least one has had the time to; else None."""
    found: list[float | None] = []
    most = 0
    for run in runs:
        parts = [s.values for (_, metric_name), s in run.series.items() if metric_name == name]
        values = np.concatenate([np.empty(0), *parts])
        if not np.all(values == values[:1]):
            return None
        most = max(most, len(values))
        found.append(float(values[0]) if values.size else None)
    return found if most > 1 else None


def layer_colour(place: int, layers: int) -> str:
    """From blue (first layer) over violet to orange (last); lightness is the theme's."""
    hue = 205 + 180 * place / max(layers - 1, 1)
    return f"hsl({hue % 360:.0f} 62% var(--layer-light))"


def _one_run(run: RunRecord, name: str) -> tuple[list[Line], list[str]]:
    """Layers (fine, by depth), all layers (bold), evaluation (dots)."""
    lines, keys = [], []
    layers = run.layers(name.removeprefix("moe/")) if name.startswith("moe/") else []
    for place, layer in enumerate(layers):
        series = run[layer_name(layer, name.removeprefix("moe/"))]
        lines.append(Line(f"layer {layer}", series, layer_colour(place, len(layers)), "layer"))
    train, evaluated = run.get(name, "train"), run.get(name, "eval")
    overall = "worst layer" if metric(name).worst else "mean of layers"
    if train is not None:
        style, colour = ("total", "var(--text)") if layers else ("train", TRAIN)
        lines.append(Line(overall if layers else "train", train, colour, style))
        keys.append(key(overall if layers else "train", colour))
    if evaluated is not None:
        label = f"{overall}, evaluation" if layers else "evaluation"
        lines.append(Line(label, evaluated, EVAL, "eval"))
        keys.append(key("evaluation", EVAL, "dots"))
    if len(layers) > 6:
        keys.append(key(f"layers {layers[0]} … {layers[-1]}", "", "ramp"))
    else:
        colours = (layer_colour(place, len(layers)) for place in range(len(layers)))
        keys += [key(f"layer {n}", c, "thin") for n, c in zip(layers, colours, strict=True)]
    return lines, keys


def _several(runs: Sequence[RunRecord], name: str) -> tuple[list[Line], list[str]]:
    """Each run in its colour: training thin, evaluation with dots."""
    lines, keys = [], []
    for number, run in enumerate(runs):
        train, evaluated = run.get(name, "train"), run.get(name, "eval")
        if train is not None:
            label = f"{run.name}, train" if evaluated is not None else run.name
            lines.append(Line(label, train, run_colour(number), "train"))
        if evaluated is not None:
            lines.append(Line(f"{run.name}, evaluation", evaluated, run_colour(number), "eval"))
        if train is not None or evaluated is not None:
            keys.append(key(run.name, run_colour(number)))
    both = {line.style for line in lines} == {"train", "eval"}
    if both:
        keys.append(key("evaluation", "var(--muted)", "dots"))
    return lines, keys


def _figure(
    title: str,
    entry: Metric,
    runs: Sequence[RunRecord],
    lines: Sequence[Line],
    keys: Sequence[str],
    steps: tuple[int, int],
    *,
    kind: str = "chart",
) -> str:
    reference = _reference(entry, runs)
    if reference is not None:
        keys = [*keys, key(reference[1], "var(--muted)", "dashed")]
    plot, cut = line_chart(
        lines,
        steps,
        percent=entry.percent,
        log=entry.log and _positive(lines),
        include=entry.include,
        early=entry.early,
        references=() if reference is None else (reference[0],),
    )
    return figure(title, legend(*keys), plot, caption=entry.meaning + _cut(cut), kind=kind)


def _reference(entry: Metric, runs: Sequence[RunRecord]) -> tuple[float, str] | None:
    if entry.reference is None:
        return None
    value, label = entry.reference
    if isinstance(value, float):
        return value, label
    experts = {count for run in runs for count in experts_of(run).values()}
    if len(experts) != 1:
        return None
    count = experts.pop()
    return math.log(count), f"{label} = {math.log(count):.2f}"


def experts_of(run: RunRecord) -> dict[int, int]:
    """Layer -> number of experts, by the loads that were written."""
    return {n: run[layer_name(n, "load")].values.shape[1] for n in run.layers("load")}


def _positive(lines: Sequence[Line]) -> bool:
    return all(np.all(line.series.values[np.isfinite(line.series.values)] > 0) for line in lines)


def _cut(cut: bool) -> str:
    return " The first steps leave the figure at the top." if cut else ""
