"""From rows to batches: order, prefetch, and one integer that says where we are.

The order of the training rows is a pure function of (seed, position): position g is row
``Order(g)``, and batch b holds the positions b B .. b B + B - 1. So the state of the data is the
next position, it does not depend on who reads which rows, and going on is exact.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import grain
import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.data.types import Rows

Batch = dict[str, np.ndarray]
PERIODS = 10_000  # weights of a mixture are kept to one part in so many
BATCHES_AHEAD = 4


class Pipeline:
    """Endless iterator of global batches: dicts of arrays (batch_size, ...), read by a thread.

    rows: an opened split. seed: of the order. shuffle: else the rows come in their order.
    start: the position to start from, `next_index` of the pipeline that is continued.
    local_rows: which rows of each global batch to read and give; by default all. A process reads
    those that its devices need.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        start: int = 0,
        local_rows: slice | None = None,
    ):
        if len(rows) == 0:
            raise UserError("the dataset has no rows")
        self.batch_size = batch_size
        self.next_index = start
        order = Order(sizes_and_weights(rows), seed=seed, shuffle=shuffle)
        places = range(batch_size)[local_rows or slice(None)]
        batches = _Batches(rows, order, start, batch_size, places)
        # One thread: Python's lock lets no two of them read at once.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=BATCHES_AHEAD)
        self._batches = iter(grain.MapDataset.source(batches).to_iter_dataset(options))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.next_index += self.batch_size
        return batch

    def close(self) -> None:
        """Ends the thread. It may be called again; the pipeline gives nothing more."""
        self._batches.close()


@dataclass(frozen=True)
class _Batches:
    """Random access to batches, as grain wants it: batch b counted from position `start`."""

    rows: Rows
    order: Order
    start: int
    batch_size: int
    places: Sequence[int]

    def __len__(self) -> int:
        return sys.maxsize  # endless

    def __getitem__(self, b: int) -> Batch:
        first = self.start + b * self.batch_size
        return stack([self.rows[self.order(first + place)] for place in self.places])


def stack(rows: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    """Rows as one batch."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


# The order of rows


@dataclass(frozen=True)
class Order:
    """Position -> row, endless.

    parts: (rows, weight) of each part; the rows of the parts lie one after the other. Each part
    is gone through whole, in a new order each time, before one of its rows comes again. In each
    period (see `period_of`) every part has its exact share.
    """

    parts: tuple[tuple[int, float], ...]
    seed: int
    shuffle: bool

    def __call__(self, position: int) -> int:
        counts, firsts = self._period
        period, slot = divmod(position, firsts[-1])
        if len(counts) > 1:
            slot = self._shuffled(slot, firsts[-1], len(counts), period)
        part = int(np.searchsorted(firsts, slot, side="right")) - 1
        size = self.parts[part][0]
        epoch, index = divmod(period * counts[part] + slot - firsts[part], size)
        return self._offsets[part] + self._shuffled(index, size, part, epoch)

    @functools.cached_property
    def _period(self) -> tuple[tuple[int, ...], list[int]]:
        """Slots of each part in a period, and where they begin and end."""
        counts = period_of([weight for _, weight in self.parts])
        return counts, [0, *np.cumsum(counts).tolist()]

    @functools.cached_property
    def _offsets(self) -> list[int]:
        return [0, *np.cumsum([size for size, _ in self.parts]).tolist()]

    def _shuffled(self, index: int, size: int, stream: int, turn: int) -> int:
        if not self.shuffle:
            return index
        seed = _seed(self.seed, stream, turn)
        return grain.experimental.index_shuffle(index, max_index=size - 1, seed=seed, rounds=4)


@functools.lru_cache(maxsize=1024)
def _seed(seed: int, stream: int, turn: int) -> int:
    """32 bits that depend on all three: neighbouring seeds must not repeat each other's epochs."""
    return int(np.random.SeedSequence([seed, stream, turn]).generate_state(1)[0])


def sizes_and_weights(rows: Rows) -> tuple[tuple[int, float], ...]:
    """(rows, weight) of each part of the rows: what they say, else all of them as one."""
    return getattr(rows, "mixture", ((len(rows), 1.0),))


def period_of(weights: Sequence[float]) -> tuple[int, ...]:
    """How many rows of each part make one period: the least whole numbers in these proportions.

    (0.75, 0.25) -> (3, 1). Where none up to 10,000 rows fit, the nearest for 10,000 rows, at least
    one of each.
    """
    shares = np.asarray(weights, np.float64) / math.fsum(weights)
    for period in range(1, PERIODS + 1):
        counts = np.rint(shares * period)
        if np.all(counts > 0) and np.allclose(counts, shares * period, rtol=0, atol=1e-6):
            return tuple(map(int, counts))
    counts = np.maximum(np.floor(shares * PERIODS), 1)
    missing = int(PERIODS - counts.sum())
    counts[np.argsort(counts - shares * PERIODS)[: max(missing, 0)]] += 1
    return tuple(map(int, counts))


# Evaluation


def evaluation_batches(rows: Rows, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
    """The rows in their order, each exactly once; at most `limit` batches.

    The last batch is filled up with rows of segment 0, which no loss and no statistic counts.
    """
    batches = -(-len(rows) // batch_size)
    for b in range(batches if limit is None else min(limit, batches)):
        given = [rows[i] for i in range(b * batch_size, min(len(rows), (b + 1) * batch_size))]
        padding = {name: np.zeros_like(value) for name, value in given[0].items()}
        yield stack([*given, *[padding] * (batch_size - len(given))])
