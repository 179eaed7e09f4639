"""The figure of the experiment as SVG: what an expert tells about the regime, by error and std."""

from __future__ import annotations

from typing import Any

import numpy as np

COLOURS = {"cooperative": "#b8432f", "competing": "#c58a12", "likelihood": "#2563a8"}
WIDTH, HEIGHT, LEFT, TOP = 300, 200, 60, 50
STEP = WIDTH + 70


def figure(results: dict[str, Any]) -> str:
    """One panel a task: bits against the width of eq. 1.3, dots are seeds and lines their means.

    The errors without a width stand as level lines, their seeds at the left edge.
    """
    body = []
    for i, (name, task) in enumerate(results["tasks"].items()):
        measured = task["experts"][str(results["judged_experts"])]
        body.append(
            f'<g transform="translate({LEFT + i * STEP} {TOP})">{_panel(name, task, measured)}</g>'
        )
    total = LEFT + len(results["tasks"]) * STEP
    for i, (loss, colour) in enumerate(COLOURS.items()):
        at = LEFT + 110 * i
        body.append(f'<path d="M{at} 12h18" stroke="{colour}" stroke-width="2"/>')
        body.append(f'<text x="{at + 23}" y="16">{loss}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {TOP + HEIGHT + 50}" '
        f'font-family="sans-serif" font-size="12" fill="#333">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(body)}</svg>\n'
    )


def _panel(name: str, task: dict[str, Any], measured: dict[str, Any]) -> str:
    most = task["most_information"]
    stds = task["stds"]
    edge = 0.04 * (np.log(stds[-1]) - np.log(stds[0]))
    low, high = np.log(stds[0]) - 3 * edge, np.log(stds[-1]) + edge

    def x(std: float) -> float:
        return round(WIDTH * float((np.log(std) - low) / (high - low)), 1)

    def y(bits: float) -> float:
        return round(HEIGHT * (1 - bits / (1.05 * most)), 1)

    parts = [
        f'<path d="M0 0V{HEIGHT}H{WIDTH}" fill="none" stroke="#999"/>',
        f'<path d="M0 {y(most)}H{WIDTH}" stroke="#999" stroke-dasharray="3 3"/>',
        f'<text x="0" y="-8" font-weight="bold">{name}</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT + 36}" text-anchor="middle">std of eq. 1.3</text>',
    ]
    for bits in np.linspace(0, most, 5):
        parts.append(f'<text x="-6" y="{y(bits) + 4}" text-anchor="end">{bits:.2g}</text>')
    for std in stds:
        parts.append(f'<text x="{x(std)}" y="{HEIGHT + 18}" text-anchor="middle">{std:g}</text>')
    for loss in ("cooperative", "competing"):
        bits_S = measured["losses"][loss]["information"]
        level = y(float(np.mean(bits_S)))
        parts.append(f'<path d="M0 {level}H{WIDTH}" stroke="{COLOURS[loss]}" stroke-width="2"/>')
        parts += [_dot(5, y(bits), loss) for bits in bits_S]
    by_std = {std: measured["likelihood_by_std"][str(std)]["information"] for std in stds}
    points = " ".join(f"{x(std)},{y(float(np.mean(bits_S)))}" for std, bits_S in by_std.items())
    colour = COLOURS["likelihood"]
    parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for std, bits_S in by_std.items():
        parts += [_dot(x(std), y(bits), "likelihood") for bits in bits_S]
    parts.append(
        f'<text transform="translate(-38 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        "bits of the first expert about the regime</text>"
    )
    return "".join(parts)


def _dot(x: float, y: float, loss: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="3" fill="{COLOURS[loss]}" fill-opacity="0.6"/>'
