"""Numbers for people: ticks of axes, labels, values in tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def step_ticks(low: int, high: int, count: int = 6) -> list[float]:
    """`ticks` that are whole numbers."""
    return [tick for tick in ticks(low, high, min(count, max(high - low, 1))) if tick % 1 == 0]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], with 2 and 5 between them where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas, most in (((1, 2, 5), 7), ((1,), 8)):
        found = [m * 10.0**p for p in powers for m in mantissas if low <= m * 10.0**p <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / 7)]


def tick_labels(values: Sequence[float], percent: bool = False) -> list[str]:
    """Labels of evenly spaced ticks, all with the same number of decimals."""
    if percent:
        return [f"{label} %" for label in tick_labels([100 * value for value in values])]
    largest = max(map(abs, values), default=0)
    if largest >= 1e13:
        return [f"{value:.4g}".replace("e+", "e") if value else "0" for value in values]
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= 10 * unit or (unit > 1e3 and largest >= unit):
            return [
                label + suffix if float(label) else "0"
                for label in tick_labels([value / unit for value in values])
            ]
    near = 1e-3 * min((abs(b - a) for a, b in pairwise(values)), default=largest)
    if 0 < largest < 1e-3:
        forms = (f".{digits}g" for digits in range(1, 17))
    else:
        forms = (f".{decimals}f" for decimals in range(17))
    for form in forms:
        labels = [f"{value:{form}}" for value in values]
        if all(abs(float(x) - value) <= near for x, value in zip(labels, values, strict=True)):
            break
    return [label.replace("e-0", "e-") for label in labels]


def formatted(value: float | None, percent: bool = False) -> str:
    """A value with four significant digits; "–" for none."""
    if value is None or math.isnan(value):
        return "–"
    if percent:
        return f"{_digits(100 * value, 3)} %"
    size = abs(value)
    for unit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if size >= unit:
            return f"{_digits(value / unit)} {suffix}"
    if 0 < size < 1e-3:
        return f"{value:.2e}".replace("e-0", "e-")
    return _digits(value)


def _digits(value: float, significant: int = 4) -> str:
    if value == round(value):
        return f"{value:,.0f}"
    if abs(value) < 100 and value == round(value, 2):
        return f"{value:,.2f}".rstrip("0")
    before = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    zeros = 0 if before else -math.floor(math.log10(abs(value))) - 1
    return f"{value:,.{max(significant - before + min(zeros, 1), 0)}f}"
