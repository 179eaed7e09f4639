"""Heat maps as PNGs with a palette, made here. A pixel's palette index is its value, so the page's
script reads numbers back from the picture itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from moe_jax.analysis.read_run import Series
from moe_jax.analysis.report.frame import plot
from moe_jax.analysis.report.line_chart import x_ticks
from moe_jax.analysis.report.numbers import tick_labels
from moe_jax.analysis.report.png import PALETTE, encoded

# A value is told relative to balance (1): index 0 is exactly zero, 1 + n stands for
# 2**(LOWEST + n / PER_OCTAVE), NOTHING for no data.
PER_OCTAVE, LOWEST, HIGHEST, NOTHING = 24, -4, 6, 255
FULL = 2.0  # octaves from balance at which the colours are at their strongest
UNDER = ((245, 245, 242), (167, 206, 227), (56, 128, 185), (16, 54, 105))
OVER = ((245, 245, 242), (247, 178, 137), (207, 66, 52), (112, 10, 28))
DEAD = (4, 16, 36)
ROOM = {1: 16, 2: 12}  # maps beside each other -> experts whose cells have room for a number


def index_of(relative: np.ndarray) -> np.ndarray:
    """uint8 palette index of values relative to balance; monotone, nan is NOTHING."""
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves = np.clip(np.log2(relative), LOWEST, HIGHEST)
    index = 1 + np.rint((octaves - LOWEST) * PER_OCTAVE)
    index = np.where(relative == 0, 0, index)
    return np.where(np.isnan(relative), NOTHING, index).astype(np.uint8)


def palette() -> list[tuple[int, int, int]]:
    """256 colours: blue below balance, pale at it, red above, near black for zero."""
    count = 1 + (HIGHEST - LOWEST) * PER_OCTAVE
    octaves = LOWEST + np.arange(count) / PER_OCTAVE
    strength = np.clip(np.abs(octaves) / FULL, 0, 1)
    stops = np.linspace(0, 1, len(OVER))
    colours = [DEAD]
    for octave, t in zip(octaves, strength, strict=True):
        side = np.array(OVER if octave >= 0 else UNDER, float)
        red, green, blue = (round(float(np.interp(t, stops, side[:, c]))) for c in range(3))
        colours.append((red, green, blue))
    return colours + [(128, 128, 128)] * (256 - len(colours))


def png(index_RC: np.ndarray) -> bytes:
    """An 8-bit palette PNG; NOTHING is transparent."""
    alpha = bytes([255] * NOTHING + [0])
    colours = bytes(np.array(palette(), np.uint8))
    return encoded(index_RC, PALETTE, [(b"PLTE", colours), (b"tRNS", alpha)])


def image(relative_RC: np.ndarray, alt: str, **data: object) -> str:
    """An img of the values. data: what the page's script needs to tell a cell by name."""
    content = base64.b64encode(png(index_of(relative_RC))).decode()
    attributes = "".join(f" data-{name}='{escape(json.dumps(v))}'" for name, v in data.items())
    return (
        f'<img class="heat" alt="{escape(alt)}" src="data:image/png;base64,{content}"{attributes}/>'
    )


@dataclass(frozen=True)
class Columns:
    """Experts over steps: values relative to the mean over experts, (E, C); nan for no data.

    first: the step of the first column; width: steps from one column to the next.
    """

    first: float
    width: float
    relative_EC: np.ndarray

    @property
    def ends(self) -> tuple[float, float]:
        """The steps at the left and right border."""
        start = self.first - self.width / 2
        return start, start + self.relative_EC.shape[1] * self.width


def in_columns(series: Series, most: int) -> Columns:
    """At most `most` columns of equal width; points that fall into one are averaged."""
    steps, values = series.steps, series.values
    count = min(len(steps), most)
    span = float(steps[-1] - steps[0])
    width = span / (count - 1) if count > 1 else float(max(steps[0], 1))
    column = np.rint((steps - steps[0]) / width).astype(int)
    whole = np.all(np.isfinite(values), axis=1)
    total, points = np.zeros((count, values.shape[1])), np.zeros(count)
    np.add.at(total, column[whole], relative(values[whole]))
    np.add.at(points, column[whole], 1)
    with np.errstate(invalid="ignore"):
        mean = total / points[:, None]
    return Columns(float(steps[0]), width, mean.T)


def over_time(columns: Columns, title: str, steps: tuple[float, float]) -> str:
    """The map in its place on an axis of `steps`, which other maps may share."""
    experts, count = columns.relative_EC.shape
    img = image(
        columns.relative_EC,
        f"{title}: load of {experts} experts over the steps",
        row="expert",
        title=title,
        first=columns.first,
        width=columns.width,
        experts=experts,
    )
    start, end = ((at - steps[0]) / (steps[1] - steps[0]) for at in columns.ends)
    box = f'<div class="box" style="left:{100 * start:.2f}%;width:{100 * (end - start):.2f}%">'
    height = min(max(18 * experts, 90), 208)
    rows = [((n + 0.5) / experts, str(n)) for n in _some(experts, most=8)]
    at = x_ticks(*steps) if count > 1 else [((start + end) / 2, f"{columns.first:,.0f}")]
    return plot(f"{box}{img}</div>", at, rows, height=height, y_title="expert")


def relative(values: np.ndarray) -> np.ndarray:
    """Each value over the mean of its row (1 is balanced); nan for rows without any."""
    mean = np.mean(values, axis=-1, keepdims=True)
    return np.divide(values, mean, out=np.full(values.shape, np.nan), where=mean != 0)


def matrix(relative_LE: np.ndarray, layers: Sequence[int], title: str, beside: int = 1) -> str:
    """Layers (rows) by experts (columns); with numbers in the cells where they find room.

    beside: how many such maps share the width of the page.
    """
    rows, experts = relative_LE.shape
    img = image(
        relative_LE, f"{title}: layers by experts", row="layer", title=title, layers=list(layers)
    )
    if experts <= ROOM.get(beside, 8) and rows <= 16:
        img += _cell_numbers(relative_LE)
        height = 30 * rows
    else:
        height = min(max(16 * rows, 64), 420)
    ticks = [((n + 0.5) / rows, str(layers[n])) for n in _some(rows, most=height // 14)]
    x = [((n + 0.5) / experts, str(n)) for n in _some(experts, most=16 if beside == 1 else 8)]
    return plot(img, x, ticks, height=height, x_title="expert", y_title="layer")


def named_grid(
    values_RC: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    what: str,
    square: bool = False,
) -> str:
    """Rows and columns with names; 1 is the pale middle. what: the unit, for the tip; square: as
    high as a square would be on a card."""
    count, width = values_RC.shape
    img = image(values_RC, title, row="named", title=title, rows=list(rows), what=what)
    height = 380 if square else min(max(20 * count, 64), 420)
    y = [((n + 0.5) / count, escape(str(rows[n]))) for n in _some(count, most=height // 14)]
    x = [((n + 0.5) / width, escape(str(columns[n]))) for n in _some(width, most=16)]
    return plot(img, x, y, height=height, x_title="expert")


def _cell_numbers(relative_LE: np.ndarray) -> str:
    cells = []
    for value in relative_LE.ravel():
        strong = value < 2 ** (-0.6 * FULL) or value > 2 ** (0.55 * FULL)
        label = "" if np.isnan(value) else tick_labels([round(float(value), 1)])[0]
        cells.append(f'<b class="strong">{label}</b>' if strong else f"<b>{label}</b>")
    return f'<div class="cells" style="--n:{relative_LE.shape[1]}">{"".join(cells)}</div>'


def _some(count: int, most: int) -> list[int]:
    """0, s, 2s, ... below `count`, at most `most` of them, s a power of two."""
    step = 1
    while count / step > most:
        step *= 2
    return list(range(0, count, step))


def scale(unit: str) -> str:
    """The legend of the colours. unit: what 1 is."""
    ratios = 2.0 ** np.linspace(-FULL, FULL, 97)
    bar = image(ratios[None, :], "colour scale")
    bar = bar.replace('class="heat"', 'class="heat bar"', 1)
    marks = ("≤ ¼", "½", "1", "2", "≥ 4")
    labels = "".join(
        f'<span style="left:{25 * n}%">{label}</span>' for n, label in enumerate(marks)
    )
    dead = image(np.zeros((1, 1)), "colour of zero").replace('class="heat"', 'class="heat dot"', 1)
    return (
        f'<div class="scale"><div class="bar-box">{bar}<div class="bar-labels">{labels}</div></div>'
        f"<span>{escape(unit)}</span><span>{dead} nothing at all</span></div>"
    )
