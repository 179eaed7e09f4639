"""The order in which rows come: pure functions of a seed and a position, without any state."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import grain
import numpy as np

SMALL = 1 << 14  # grain's permutation takes milliseconds on a handful of indices
PERIODS = 10_000  # weights of a mixture are kept to one part in so many


def shuffled(index: int, size: int, seed: int) -> int:
    """Where `index` lies in a permutation of 0 .. size - 1 (at most 2^32), chosen by 32 bits."""
    if size <= SMALL:
        return int(_permutation(size, seed)[index])
    return grain.experimental.index_shuffle(index, max_index=size - 1, seed=seed, rounds=4)


@functools.lru_cache(maxsize=256)
def _permutation(size: int, seed: int) -> np.ndarray:
    """By raw bits, whose stream NumPy keeps in every version, as it does not its shuffles."""
    return np.argsort(np.random.Philox(key=seed).random_raw(size), kind="stable")


def scattered(index: int, size: int) -> int:
    """A fixed permutation of 0 .. size - 1."""
    return shuffled(index, size, seed=0)


@functools.lru_cache(maxsize=1024)
def _seed(seed: int, stream: int, turn: int) -> int:
    """32 bits that depend on all three: neighbouring seeds must not repeat each other's epochs."""
    return int(np.random.SeedSequence([seed, stream, turn]).generate_state(1)[0])


@dataclass(frozen=True)
class Order:
    """Position -> row, endless.

    parts: (rows, weight) of each part; the rows of the parts lie one after the other. Each part
    is gone through whole, in a new order each time, before one of its rows comes again. In each
    period (see `period_of`) every part has its exact share, at places that change.
    """

    parts: tuple[tuple[int, float], ...]
    seed: int
    shuffle: bool = True

    def __call__(self, position: int) -> int:
        counts, firsts = self._period
        period, slot = divmod(position, firsts[-1])
        if len(counts) > 1:
            slot = self._shuffled(slot, firsts[-1], len(counts), period)
        part = next(p for p, first in enumerate(firsts[1:]) if slot < first)
        size = self.parts[part][0]
        epoch, index = divmod(period * counts[part] + slot - firsts[part], size)
        return self._offsets[part] + self._shuffled(index, size, part, epoch)

    def _shuffled(self, index: int, size: int, stream: int, turn: int) -> int:
        return shuffled(index, size, _seed(self.seed, stream, turn)) if self.shuffle else index

    @functools.cached_property
    def _period(self) -> tuple[tuple[int, ...], list[int]]:
        """Slots of each part in a period, and where they begin and end."""
        counts = period_of([weight for _, weight in self.parts])
        return counts, [0, *np.cumsum(counts).tolist()]

    @functools.cached_property
    def _offsets(self) -> list[int]:
        return [0, *np.cumsum([size for size, _ in self.parts]).tolist()]


def period_of(weights: Sequence[float]) -> tuple[int, ...]:
    """How many rows of each part make one period: the least whole numbers in these proportions.

    (0.75, 0.25) -> (3, 1). Where none up to 10,000 rows fit, the nearest for about 10,000 rows, at
    least one of each.
    """
    shares = np.asarray(weights, np.float64) / math.fsum(weights)
    for period in range(1, PERIODS + 1):
        counts = np.rint(shares * period)
        if np.all(counts > 0) and np.allclose(counts, shares * period, rtol=0, atol=1e-6):
            return tuple(map(int, counts))
    return tuple(int(count) for count in np.maximum(np.rint(shares * PERIODS), 1))
