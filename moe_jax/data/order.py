"""The order in which rows come: pure functions of a seed and a position, without any state."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SMALL = 1 << 16  # up to here a permutation is kept whole
PERIODS = 10_000  # weights of a mixture are kept to one part in so many


def shuffled(index: int, size: int, seed: int) -> int:
    """Where `index` lies in a permutation of 0 .. size - 1, chosen by a seed of 32 bits.

    Our own, since a run that goes on years later must find the order of its data, and since
    grain's index_shuffle is no permutation where size - 1 is 2^16, 2^18, ... (0.2.18).
    """
    if size <= SMALL:
        return int(_kept_permutation(size, seed)[index])
    return _feistel(index, size, seed)


def _permutation(size: int, seed: int) -> np.ndarray:
    """By raw bits, whose stream NumPy keeps in every version, as it does not its shuffles."""
    return np.argsort(np.random.Philox(key=seed).random_raw(size), kind="stable")


_kept_permutation = functools.lru_cache(maxsize=64)(_permutation)


def _feistel(index: int, size: int, seed: int) -> int:
    """A Feistel network permutes the numbers of 2h bits, of which there are at most 4 x size; we
    walk along its cycle until we are below size again (Black and Rogaway 2002)."""
    half = ((size - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    keys = _round_keys(seed)
    while True:
        left, right = index >> half, index & mask
        for key in keys:
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 >> 32 & mask)
        index = left << half | right
        if index < size:
            return index


@functools.lru_cache(maxsize=256)
def _round_keys(seed: int) -> tuple[int, ...]:
    return tuple(int(bits) for bits in np.random.Philox(key=seed).random_raw(4))


def place_of(index: int, rows: int, scatter: bool) -> int:
    """Which row of a split stands at `index`: in their own order, or scattered, as rows that are
    evaluated come. IndexError where there is none."""
    if not 0 <= index < rows:
        raise IndexError(f"row {index} of {rows}")
    return scattered(index, rows) if scatter else index


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
        counts = self._counts
        period, slot = divmod(position, sum(counts))
        stream = len(counts)  # the parts have the streams below
        part_of, rank_of = _layout(counts, self._seed_of(stream, period))
        part, size = part_of[slot], self.parts[part_of[slot]][0]
        epoch, index = divmod(period * counts[part] + rank_of[slot], size)
        seed = self._seed_of(part, epoch)
        return self._offsets[part] + (index if seed is None else shuffled(index, size, seed))

    def _seed_of(self, stream: int, turn: int) -> int | None:
        return _seed(self.seed, stream, turn) if self.shuffle else None

    @functools.cached_property
    def _counts(self) -> tuple[int, ...]:
        return period_of([weight for _, weight in self.parts])

    @functools.cached_property
    def _offsets(self) -> list[int]:
        return [0, *np.cumsum([size for size, _ in self.parts]).tolist()]


@functools.lru_cache(maxsize=64)
def _layout(counts: tuple[int, ...], seed: int | None) -> tuple[list[int], list[int]]:
    """For each slot of a period, its part and how many slots of that part come before it."""
    parts = np.repeat(np.arange(len(counts)), counts)
    if seed is not None and len(counts) > 1:
        parts = parts[_permutation(len(parts), seed)]
    ranks = np.empty_like(parts)
    for part, count in enumerate(counts):
        ranks[parts == part] = np.arange(count)
    return parts.tolist(), ranks.tolist()


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
