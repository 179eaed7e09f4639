"""Means over few seeds and how well they are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special  # scipy.stats takes a second to import

LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; infinite where one value says nothing about it."""

    mean: float
    low: float
    high: float
    n: int


def student(values: Sequence[float], level: float = LEVEL) -> Interval:
    """mean -+ t_{(1 + level) / 2, n - 1} s / sqrt(n): exact for normal values (Student 1908)."""
    x = np.asarray(values, np.float64)
    mean, n = float(x.mean()), len(x)
    if n < 2:
        return Interval(mean, -np.inf, np.inf, n)
    half = special.stdtrit(n - 1, (1 + level) / 2) * x.std(ddof=1) / np.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def bootstrap(values: Sequence[float], level: float = LEVEL, seed: int = 0) -> Interval:
    """Percentile interval of the mean over resamples of the values (Efron 1979)."""
    x = np.asarray(values, np.float64)
    mean, n = float(x.mean()), len(x)
    if n < 2:
        return Interval(mean, -np.inf, np.inf, n)
    draws = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    low, high = np.quantile(x[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), n)


def cautious(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The wider of `student` and `bootstrap` at either end: with three seeds the bootstrap alone
    covers the truth far less often than it says."""
    a, b = student(values, level), bootstrap(values, level)
    return Interval(a.mean, min(a.low, b.low), max(a.high, b.high), a.n)


def paired(treatment: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """treatment - baseline of each seed that both have, in order of the seeds."""
    return [treatment[seed] - baseline[seed] for seed in sorted(treatment.keys() & baseline.keys())]
