"""Figures of a sweep as SVG and HTML: points, parallel coordinates, heat maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from moe_jax.analysis.report.frame import Tick, plot
from moe_jax.analysis.report.line_chart import Axis
from moe_jax.analysis.report.numbers import formatted, log_ticks, ticks

UNITS = 1000  # of the SVG's coordinates, along both axes
MIN_GAP = 0.06  # of the axis, between two labels
DECADES = 20.0  # values spread over a larger ratio stand on a logarithmic axis
FAR, NEAR = (38, 75, 150), (235, 200, 60)  # worst and best of a colour scale, dark to light


def numeric(value: Any) -> float | None:
    """The number that a swept value is, typed or as a text; None for any other."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class AxisScale:
    """Where values stand along an axis, from 0 to 1: numbers by their size (by its logarithm where
    they spread far), anything else in the order of its first appearance."""

    places: Callable[[object], float]
    ticks: Sequence[Tick]  # place, label

    @classmethod
    def of(cls, values: Sequence[object]) -> AxisScale:
        distinct = list(dict.fromkeys(values))
        numbers = [number for number in map(numeric, distinct) if number is not None]
        if len(numbers) < len(distinct) or len(numbers) < 2:
            return cls._of_names(distinct)
        return cls._of_numbers(min(numbers), max(numbers), numbers)

    @classmethod
    def _of_names(cls, names: Sequence[object]) -> AxisScale:
        at = {name: (n + 0.5) / len(names) for n, name in enumerate(names)}
        labels = [(at[name], escape(shown(name))) for name in names]
        return cls(lambda value: at[value], labels)

    @classmethod
    def _of_numbers(cls, low: float, high: float, numbers: Sequence[float]) -> AxisScale:
        log = low > 0 and high / low >= DECADES
        pad = (high / low) ** 0.06 if log else 0.06 * (high - low)
        axis = Axis(low / pad, high * pad, log=True) if log else Axis(low - pad, high + pad)

        def place(value: Any) -> float:
            return float(axis(np.array(float(value))))

        few = sorted(set(numbers))
        marks = few if len(few) <= 7 else (log_ticks if log else ticks)(low, high)
        return cls(place, _apart([(place(mark), _label(mark)) for mark in marks]))


def _label(number: float) -> str:
    """A tick's number as one writes it: 0.005, not the 0.00500 of a measured value."""
    return formatted(number) if abs(number) >= 1000 else shown(number)


def _apart(ticks: Sequence[Tick]) -> list[Tick]:
    """Without those whose labels would stand on another's."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick[0] - kept[-1][0] >= MIN_GAP:
            kept.append(tick)
    return kept


def shown(value: object) -> str:
    """A swept value in few letters."""
    number = numeric(value)
    text = str(value) if number is None else f"{number:.4g}".replace("e-0", "e-")
    return text if len(text) <= 24 else f"{text[:22]}…"


@dataclass(frozen=True)
class Dot:
    """A run or an arm in a figure. spread: ends of an interval along y; tip: shown on hover."""

    x: float
    y: float
    colour: str
    tip: str
    spread: tuple[float, float] | None = None


def scatter(
    dots: Sequence[Dot], means: Sequence[Dot], *, x_title: str, y_title: str, lower_is_better: bool
) -> str:
    """Runs as dots, arms as marks with their intervals, and the front that nothing else beats."""
    x, y = (AxisScale.of([getattr(d, name) for d in [*dots, *means]] or [0, 1]) for name in "xy")

    def at(dot: Dot) -> tuple[float, float]:
        return round(UNITS * x.places(dot.x), 1), round(UNITS * (1 - y.places(dot.y)), 1)

    lines = [f"M0 {round(UNITS * (1 - place), 1)}H{UNITS}" for place, _ in y.ticks]
    body = [f'<path class="grid" d="{"".join(lines)}"/>']
    front = _front(means, lower_is_better)
    if len(front) > 1:
        d = "L".join(f"{a} {b}" for a, b in map(at, front))
        body.append(f'<path class="reference" d="M{d}"><title>best at its cost</title></path>')
    for mean in means:
        a, b = at(mean)
        if mean.spread is not None:
            ends = [round(UNITS * (1 - min(max(y.places(v), 0), 1)), 1) for v in mean.spread]
            body.append(
                f'<path class="spread" style="--c:{mean.colour}" d="M{a} {ends[0]}V{ends[1]}"/>'
            )
        body.append(_mark(a, b, mean, "mean"))
    body += [_mark(*at(dot), dot, "dots") for dot in dots]
    svg = (
        f'<svg class="lines" viewBox="0 0 {UNITS} {UNITS}" preserveAspectRatio="none">'
        f"{''.join(body)}</svg>"
    )
    y_ticks = [(1 - place, label) for place, label in y.ticks]
    return plot(svg, x.ticks, y_ticks, height=300, x_title=x_title, y_title=y_title)


def _mark(a: float, b: float, dot: Dot, kind: str) -> str:
    """A point of a stretched SVG: a line of no length with round ends keeps its shape."""
    return (
        f'<path class="{kind}" style="--c:{dot.colour}" data-tip="{escape(dot.tip)}" '
        f'd="M{a} {b}h0"><title>{escape(dot.tip)}</title></path>'
    )


def _front(means: Sequence[Dot], lower_is_better: bool) -> list[Dot]:
    """Of those that cost less than it, none is as good."""
    best, front = math.inf, []
    sign = 1 if lower_is_better else -1
    for mean in sorted(means, key=lambda dot: (dot.x, sign * dot.y)):
        if sign * mean.y < best:
            best = sign * mean.y
            front.append(mean)
    return front


def parallel(
    names: Sequence[str],
    rows: Sequence[Sequence[object]],
    colours: Sequence[str],
    tips: Sequence[str],
) -> str:
    """A vertical axis a name, a line a row through its values."""
    scales = [AxisScale.of([row[column] for row in rows]) for column in range(len(names))]
    step = 1 / max(len(names) - 1, 1)
    axes = "".join(f"M{round(UNITS * step * n, 1)} 0V{UNITS}" for n in range(len(names)))
    body = [f'<path class="grid" d="{axes}"/>']
    for row, colour, tip in zip(rows, colours, tips, strict=True):
        places = [
            f"{round(UNITS * step * n, 1)} {round(UNITS * (1 - scale.places(value)), 1)}"
            for n, (scale, value) in enumerate(zip(scales, row, strict=True))
        ]
        body.append(
            f'<path class="strand" style="--c:{colour}" data-tip="{escape(tip)}" '
            f'd="M{"L".join(places)}"><title>{escape(tip)}</title></path>'
        )
    labels = "".join(
        _axis(name, scale, step * n)
        for n, (name, scale) in enumerate(zip(names, scales, strict=True))
    )
    return (
        f'<div class="parallel"><div class="strands"><svg class="lines" '
        f'viewBox="0 0 {UNITS} {UNITS}" preserveAspectRatio="none">{"".join(body)}</svg>'
        f"{labels}</div></div>"
    )


def _axis(name: str, scale: AxisScale, left: float) -> str:
    side = "end" if left == 1 else "start"
    marks = "".join(
        f'<span style="top:{100 * (1 - place):.1f}%">{label}</span>' for place, label in scale.ticks
    )
    place = f"left:{100 * left:.2f}%"
    return f'<div class="axis {side}" style="{place}"><b>{escape(name)}</b>{marks}</div>'


def heat_table(
    rows: Sequence[object],
    columns: Sequence[object],
    cells: dict[tuple[object, object], float],
    *,
    row_title: str,
    column_title: str,
    lower_is_better: bool,
) -> str:
    """The mean of the metric for each pair of values, in the colours of `shade`."""
    found = [value for value in cells.values() if math.isfinite(value)]
    colour = shade(found, lower_is_better)
    head = "".join(f'<th scope="col">{escape(shown(column))}</th>' for column in columns)
    body = []
    for row in rows:
        line = [f'<th scope="row">{escape(shown(row))}</th>']
        for column in columns:
            value = cells.get((row, column), math.nan)
            if math.isfinite(value):
                back, front = colour(value)
                style = f"background:{back};color:{front}"
                line.append(f'<td style="{style}">{escape(formatted(value))}</td>')
            else:
                line.append('<td class="empty">–</td>')
        body.append(f"<tr>{''.join(line)}</tr>")
    corner = f'<th class="corner">{escape(row_title)} \\ {escape(column_title)}</th>'
    return (
        f'<div class="scroll"><table class="heat-table"><thead><tr>{corner}{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def shade(values: Sequence[float], lower_is_better: bool) -> Callable[[float], tuple[str, str]]:
    """Background and text colour of a value: light for the best of `values`, dark for the worst."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)

    def colour(value: float) -> tuple[str, str]:
        share = (value - low) / (high - low) if high > low else 0.5
        good = 1 - share if lower_is_better else share
        mixed = [round(f + (n - f) * good) for f, n in zip(FAR, NEAR, strict=True)]
        return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})", "#10151c" if good > 0.45 else "#ffffff"

    return colour
