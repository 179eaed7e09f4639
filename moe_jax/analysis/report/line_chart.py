"""Curves over training as SVG. The path is the data: the page's script reads values back from it
to show them under the pointer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from moe_jax.analysis.read_run import Series
from moe_jax.analysis.report.frame import Tick, plot
from moe_jax.analysis.report.numbers import log_ticks, step_ticks, tick_labels, ticks

UNITS = 10_000  # of the SVG's coordinates, along both axes
HEIGHT = 200
EARLY = 0.05  # share of the steps whose fall from the initial value may leave the figure
POINTS = {"train": 400, "eval": 400, "total": 400, "layer": 100}


@dataclass(frozen=True)
class Line:
    """A curve. colour: of CSS. style: train (thin), eval (dots), total (bold), layer (fine)."""

    label: str
    series: Series
    colour: str
    style: str


@dataclass(frozen=True)
class Axis:
    """Maps [low, high] to [0, 1], linearly or by the logarithm."""

    low: float
    high: float
    log: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if self.log:
            span = math.log(self.high) - math.log(self.low)
            return (np.log(np.maximum(values, 1e-300)) - math.log(self.low)) / span
        return (values - self.low) / (self.high - self.low)

    def ticks(self, percent: bool) -> list[Tick]:
        """(fraction from the top, label)."""
        values = (log_ticks if self.log else ticks)(self.low, self.high)
        if self.log:
            labels = [tick_labels([value], percent)[0] for value in values]
        else:
            labels = tick_labels(values, percent)
        where = 1 - self(np.array(values))
        return list(zip(where.tolist(), labels, strict=True))


def line_chart(
    lines: Sequence[Line],
    steps: tuple[int, int],
    *,
    percent: bool = False,
    log: bool = False,
    include: Sequence[float] = (),
    early: bool = False,
    references: Sequence[float] = (),
    x_title: str = "step",
) -> tuple[str, bool]:
    """The plot, and whether the first steps leave it at the top.

    steps: first and last of the x axis. include: values that the y axis must reach. early: a
    metric that falls steeply at first; its first steps may be cut off. references: dashed levels.
    x_title: what the steps are.
    """
    y_axis, cut = _y_axis(lines, steps, log=log, include=[*include, *references], early=early)
    x_axis = Axis(steps[0], steps[1] + 0.015 * (steps[1] - steps[0]))  # room for the last dot
    body = [_grid(y_axis.ticks(percent))]
    for value in references:
        y = round(UNITS * (1 - float(y_axis(np.array(value)))))
        body.append(f'<path class="reference" d="M0 {y}H{UNITS}"/>')
    body += [_curve(line, x_axis, y_axis) for line in lines]
    svg = (
        f'<svg class="lines" viewBox="0 0 {UNITS} {UNITS}" preserveAspectRatio="none" '
        f'data-x="{x_axis.low},{x_axis.high}" data-y="{y_axis.low!r},{y_axis.high!r}" '
        f'data-log="{int(log)}" data-percent="{int(percent)}" data-grid="{_spacing(lines)}" '
        f'data-unit="{escape(x_title)}">'
        f'{"".join(body)}</svg><div class="cross"></div>'
    )
    drawn = plot(
        svg,
        x_ticks(x_axis.low, x_axis.high),
        y_axis.ticks(percent),
        height=HEIGHT,
        x_title=x_title,
    )
    return drawn, cut


def x_ticks(low: float, high: float) -> list[Tick]:
    """Ticks of an axis of steps."""
    values = step_ticks(math.ceil(low), math.floor(high))
    at = Axis(low, high)(np.array(values, float))
    return list(zip(at.tolist(), tick_labels(values), strict=True))


def thin(series: Series, most: int) -> Series:
    """At most `most` points, keeping the least and the greatest of each stretch: no spike is
    lost. The first and last points stay."""
    n = len(series.steps)
    if n <= most:
        return series
    kept = {0, n - 1}
    for part in np.array_split(np.arange(n), max(most // 2 - 1, 1)):
        finite = part[np.isfinite(series.values[part])]
        if finite.size:
            kept.add(int(finite[np.argmin(series.values[finite])]))
            kept.add(int(finite[np.argmax(series.values[finite])]))
    index = np.array(sorted(kept))
    return Series(series.steps[index], series.values[index])


def _y_axis(
    lines: Sequence[Line],
    steps: tuple[int, int],
    *,
    log: bool,
    include: Sequence[float],
    early: bool,
) -> tuple[Axis, bool]:
    everything = _finite(lines, lambda at: at >= steps[0])
    settled = _finite(lines, lambda at: at >= steps[0] + EARLY * (steps[1] - steps[0]))
    shown = settled if early and settled.size >= 5 else everything
    shown = np.append(shown, np.array(include, float))
    if shown.size == 0:
        return Axis(0, 1), False
    low, high = float(shown.min()), float(shown.max())
    if log:
        low, high = max(low, 1e-300), max(high, 1e-300)
        wider = max((high / low) ** 0.05, 1.05)
        return Axis(low / wider, high * wider, log=True), False
    pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    axis = Axis(max(low - pad, 0.0) if low >= 0 else low - pad, high + pad)
    return axis, bool(everything.size and everything.max() > axis.high)


def _finite(lines: Sequence[Line], where: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    values = [line.series.values[where(line.series.steps)] for line in lines]
    flat = np.concatenate([np.empty(0), *values])
    return flat[np.isfinite(flat)]


def _spacing(lines: Sequence[Line]) -> int:
    """The greatest common divisor of the logged steps: what a position is rounded to."""
    return int(np.gcd.reduce(np.concatenate([[0], *(line.series.steps for line in lines)]))) or 1


def _grid(y_ticks: Sequence[Tick]) -> str:
    d = "".join(f"M0 {round(UNITS * at)}H{UNITS}" for at, _ in y_ticks)
    return f'<path class="grid" d="{d}"/>'


def _curve(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    series = thin(line.series, POINTS[line.style])
    finite = np.isfinite(series.values)
    x = np.rint(UNITS * x_axis(series.steps)).astype(int)
    y = np.rint(UNITS * (1 - y_axis(np.where(finite, series.values, y_axis.low)))).astype(int)
    head, label = f'style="--c:{line.colour}"', escape(line.label)
    drawn = (
        f'<path class="line {line.style}" {head} data-label="{label}" d="{_path(x, y, finite)}">'
        f"<title>{label}</title></path>"
    )
    if line.style == "eval" or finite.sum() == 1:
        dots = "".join(f"M{a} {b}h0" for a, b in zip(x[finite], y[finite], strict=True))
        drawn += f'<path class="dots" {head} d="{dots}"/>'
    bad = line.series.steps[~np.isfinite(line.series.values)]
    if bad.size and line.style != "layer":
        marks = "".join(f"M{round(UNITS * float(x_axis(at)))} 200h0" for at in bad[:200])
        where = ", ".join(map(str, bad[:5])) + (" ..." if bad.size > 5 else "")
        title = f"<title>{label}: NaN or inf at step {where}</title>"
        drawn += f'<path class="bad" d="{marks}">{title}</path>'
    return drawn


def _path(x: np.ndarray, y: np.ndarray, finite: np.ndarray) -> str:
    """M for the first point of each unbroken stretch, then l with differences."""
    d, last = [], None
    for a, b, there in zip(x.tolist(), y.tolist(), finite.tolist(), strict=True):
        if not there:
            last = None
        elif last is None:
            d.append(f"M{a} {b}")
            last = (a, b)
        else:
            d.append(f"l{a - last[0]} {b - last[1]}")
            last = (a, b)
    return "".join(d)
