"""What every figure shares: a plot with axes, whose text keeps its size at every width.

Positions along an axis are fractions in [0, 1], from the left and from the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Tick = tuple[float, str]  # position, label


def figure(title: str, *parts: str, caption: str = "", kind: str = "chart") -> str:
    """A card: heading, parts, and what it means."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}"><h3>{escape(title)}</h3>{"".join(parts)}{below}</figure>'


def plot(
    area: str,
    x_ticks: Sequence[Tick],
    y_ticks: Sequence[Tick],
    *,
    height: int,
    x_title: str = "step",
    y_title: str = "",
) -> str:
    """`area` (an svg or img that fills its box) between a y axis and an x axis.

    height: of the area, in CSS pixels; the width is the container's.
    """
    width = max((len(label) for _, label in y_ticks), default=1)
    y_axis = "".join(f'<span style="top:{100 * at:.2f}%">{label}</span>' for at, label in y_ticks)
    x_axis = "".join(f'<span style="left:{100 * at:.2f}%">{label}</span>' for at, label in x_ticks)
    title = f'<div class="y-title">{escape(y_title)}</div>' if y_title else ""
    return (
        f'<div class="plot" style="--labels:{width}ch;--height:{height}px">{title}'
        f'<div class="y-axis">{y_axis}</div><div class="area">{area}</div>'
        f'<div class="x-axis">{x_axis}</div><div class="x-title">{escape(x_title)}</div></div>'
    )


def legend(*items: str) -> str:
    return f'<div class="legend">{"".join(items)}</div>' if items else ""


def key(label: str, colour: str, kind: str = "solid") -> str:
    """A legend item. kind: solid, thin, dots, dashed or ramp (all layers)."""
    return f'<span class="key"><i class="{kind}" style="--c:{colour}"></i>{escape(label)}</span>'


def run_colour(number: int) -> str:
    """The colour of a run, the same in all figures; eight, then again."""
    return f"var(--run-{number % 8})"
