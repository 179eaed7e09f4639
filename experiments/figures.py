"""Figures of cards as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from experiments.card import NULL
from moe_jax.analysis.report.numbers import tick_labels, ticks

WIDTH, ROW, TOP, LETTER = 420, 26, 48, 6.6
HEIGHT = 230
COLOUR, PALE = "#2563a8", "#9aa5b1"
COLOURS = (COLOUR, "#c2410c", "#12875a", "#9333b8")


def dots(runs: Sequence[Mapping[str, Any]], metric: str, title: str) -> str:
    """A row an arm: a dot a seed, a line at the mean; null arms pale, at the end."""
    arms: dict[str, list[float]] = {}
    for run in sorted(runs, key=lambda run: run["arm"].startswith(NULL)):
        if run.get(metric) is not None and math.isfinite(run[metric]):
            arms.setdefault(run["arm"], []).append(run[metric])
    left = 20 + LETTER * max(map(len, arms), default=0)
    values = [value for arm in arms.values() for value in arm] or [0.0, 1.0]
    pad = 0.05 * (max(values) - min(values)) or 0.05
    low, high = min(values) - pad, max(values) + pad

    def x(value: float) -> float:
        return round(left + WIDTH * (value - low) / (high - low), 1)

    bottom = TOP + ROW * len(arms)
    marks = ticks(low, high)
    body = [f'<text x="12" y="22" font-weight="bold">{escape(title)}: {escape(metric)}</text>']
    for value, label in zip(marks, tick_labels(marks), strict=True):
        body.append(f'<path d="M{x(value)} {TOP - 10}V{bottom}" stroke="#e3e6ea"/>')
        body.append(f'<text x="{x(value)}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    for number, (arm, found) in enumerate(arms.items()):
        y, colour = TOP + ROW * number + ROW // 2 - 5, PALE if arm.startswith(NULL) else COLOUR
        mean = x(sum(found) / len(found))
        body.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(arm)}</text>')
        body.append(f'<path d="M{mean} {y - 8}v16" stroke="{colour}" stroke-width="2.5"/>')
        body += [
            f'<circle cx="{x(value)}" cy="{y}" r="4" fill="{colour}" fill-opacity="0.55"/>'
            for value in found
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + WIDTH + 24:.0f} '
        f'{bottom + 28}" font-family="sans-serif" font-size="12" fill="#333">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(body)}</svg>\n'
    )


def curves(
    series: Mapping[str, Sequence[tuple[float, Sequence[float | None]]]], title: str, x_title: str
) -> str:
    """A line a series through the means at each x (on an axis of equal steps), a dot a seed; runs
    without a value (None) are left out."""
    series = {
        name: [(x, there) for x, found in points if (there := [v for v in found if v is not None])]
        for name, points in series.items()
    }
    xs = sorted({x for points in series.values() for x, _ in points})
    values = [v for points in series.values() for _, found in points for v in found]
    pad = 0.05 * (max(values) - min(values)) or 0.05
    low, high = min(values) - pad, max(values) + pad
    left, bottom = 56, TOP + HEIGHT

    def at(x: float, value: float) -> tuple[float, float]:
        across = left + WIDTH * (xs.index(x) + 0.5) / len(xs)
        return round(across, 1), round(bottom - HEIGHT * (value - low) / (high - low), 1)

    body = [f'<text x="12" y="20" font-weight="bold">{escape(title)}</text>']
    marks = ticks(low, high)
    for mark, label in zip(marks, tick_labels(marks), strict=True):
        y = at(xs[0], mark)[1]
        body.append(f'<path d="M{left} {y}h{WIDTH}" stroke="#e3e6ea"/>')
        body.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{label}</text>')
    for x in xs:
        body.append(
            f'<text x="{at(x, low)[0]}" y="{bottom + 18}" text-anchor="middle">{x:g}</text>'
        )
    body.append(
        f'<text x="{left + WIDTH / 2}" y="{bottom + 38}" text-anchor="middle">'
        f"{escape(x_title)}</text>"
    )
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = "L".join(f"{a} {b}" for a, b in (at(x, sum(v) / len(v)) for x, v in points))
        body.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [
            f'<circle cx="{at(x, v)[0]}" cy="{at(x, v)[1]}" r="3.5" fill="{colour}" '
            'fill-opacity="0.55"/>'
            for x, found in points
            for v in found
        ]
        key = left + 130 * number
        body.append(f'<path d="M{key} 36h18" stroke="{colour}" stroke-width="2"/>')
        body.append(f'<text x="{key + 24}" y="40">{escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + WIDTH + 24} {bottom + 50}" '
        f'font-family="sans-serif" font-size="12" fill="#333">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(body)}</svg>\n'
    )
