"""The regions of the plane of formants as SVG: what is said where, with the lines that decide."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.vowels.judged import FIRST_SEED, NETWORKS, trained
from experiments.vowels.networks import Network, Params, gate_of
from moe_jax.data.vowels import VowelRows

PANELS = ("4 experts", "8 experts", "6 hidden units")
COLOURS = ("#2563a8", "#4f9a6b", "#c58a12", "#b8432f")
SOUNDS = {"iy": "[i]", "ih": "[ɪ]", "aa": "[ɑ]", "ah": "[ʌ]"}
SIDE, LEFT, TOP, GAP = 300, 50, 56, 60
GRID = 60  # cells along a side
LEVEL = 0.5  # of an expert's output or of the gate, on whose border a line stands


def figure(results: dict[str, Any], train: VowelRows, held: VowelRows) -> str:
    """A panel for each of three networks of the first seed: cells in the colour of the vowel with
    the largest output, test cases as dots, solid lines where the first expert changes."""
    networks = {network.name: network for network in NETWORKS}
    panels = []
    for number, name in enumerate(PANELS):
        network, rate = networks[name], results["networks"][name]["rate"]
        params, _ = trained(network, train, rate, range(FIRST_SEED, FIRST_SEED + 1))
        at = f"translate({LEFT + number * (SIDE + GAP)} {TOP})"
        panels.append(f'<g transform="{at}">{_panel(network, _first(params), train, held)}</g>')
    keys = "".join(
        f'<rect x="{LEFT + 90 * i}" y="8" width="12" height="12" fill="{colour}"/>'
        f'<text x="{LEFT + 90 * i + 18}" y="18">{SOUNDS[vowel]}</text>'
        for i, (vowel, colour) in enumerate(zip(train.classes, COLOURS, strict=True))
    )
    width = LEFT + len(PANELS) * (SIDE + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + SIDE + 50}" '
        'font-family="sans-serif" font-size="12" fill="#333">'
        f'<rect width="100%" height="100%" fill="#fff"/>{keys}{"".join(panels)}</svg>\n'
    )


def _first(params: Params) -> Params:
    return {
        name: _first(leaf) if isinstance(leaf, dict) else leaf[0] for name, leaf in params.items()
    }


def _panel(network: Network, params: Params, train: VowelRows, held: VowelRows) -> str:
    low, high = train.features.min(axis=0) - 0.2, train.features.max(axis=0) + 0.2
    steps = (np.arange(GRID) + 0.5) / GRID
    first, second = np.meshgrid(steps, steps)  # F1 to the right, F2 upwards
    x_TD = np.stack([first, second], axis=-1).reshape(-1, 2) * (high - low) + low
    x_TD = jnp.asarray(x_TD.astype(np.float32))
    said = np.asarray(network.output(params, x_TD)).argmax(axis=1).reshape(GRID, GRID)
    cell = SIDE / GRID
    parts = [_cells(said, cell)]
    if network.experts:
        expert = np.asarray(gate_of(params, x_TD)).argmax(axis=1).reshape(GRID, GRID)
        parts.append(_borders(expert, cell))
        parts += _numbers(expert, cell)
    for (f1, f2), label in zip(held.features, held.labels, strict=True):
        px = SIDE * (f1 - low[0]) / (high[0] - low[0])
        py = SIDE * (1 - (f2 - low[1]) / (high[1] - low[1]))
        if 0 <= px <= SIDE and 0 <= py <= SIDE:
            parts.append(
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6" fill="{COLOURS[label]}" '
                'stroke="#fff" stroke-width="0.7"/>'
            )
    parts.append(f'<rect width="{SIDE}" height="{SIDE}" fill="none" stroke="#999"/>')
    parts.append(f'<text x="0" y="-10" font-weight="bold">{network.name}</text>')
    parts.append(f'<text x="{SIDE / 2}" y="{SIDE + 20}" text-anchor="middle">F1</text>')
    parts.append(f'<text x="-18" y="{SIDE / 2}" text-anchor="middle">F2</text>')
    return "".join(parts)


def _cells(said: np.ndarray, cell: float) -> str:
    """Runs of one vowel along a line, as one rectangle each."""
    parts = []
    for row in range(GRID):
        start = 0
        for column in range(1, GRID + 1):
            if column == GRID or said[row, column] != said[row, start]:
                x, y = start * cell, SIDE - (row + 1) * cell
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{(column - start) * cell:.1f}" '
                    f'height="{cell + 0.2:.1f}" fill="{COLOURS[said[row, start]]}" '
                    'fill-opacity="0.28"/>'
                )
                start = column
    return "".join(parts)


def _borders(expert: np.ndarray, cell: float) -> str:
    """Lines between cells of different first experts."""
    path = []
    for row, column in zip(*np.nonzero(expert[:, 1:] != expert[:, :-1]), strict=True):
        x, y = (column + 1) * cell, SIDE - row * cell
        path.append(f"M{x:.1f} {y:.1f}v{-cell:.1f}")
    for row, column in zip(*np.nonzero(expert[1:] != expert[:-1]), strict=True):
        x, y = column * cell, SIDE - (row + 1) * cell
        path.append(f"M{x:.1f} {y:.1f}h{cell:.1f}")
    return f'<path d="{"".join(path)}" stroke="#111" stroke-width="1.6" fill="none"/>'


def _numbers(expert: np.ndarray, cell: float) -> list[str]:
    """The number of each expert that is first anywhere, in the middle of where it is."""
    found = []
    for number in np.unique(expert):
        rows, columns = np.nonzero(expert == number)
        x, y = (columns.mean() + 0.5) * cell, SIDE - (rows.mean() + 0.5) * cell
        found.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" font-weight="bold">{number}</text>'
        )
    return found
