"""From rows to batches: order, prefetch, and one integer that says where we are.

The order of the training rows is a pure function of (seed, position): position g is row
``Order(g)``, and batch b holds the positions b B .. b B + B - 1. So the state of the data is the
next position, it does not depend on who reads which rows, and going on is exact.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import grain
import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.data.order import Order
from moe_jax.data.types import FILLS, Columns, Rows

Batch = dict[str, np.ndarray]
BATCHES_AHEAD = 4


class Pipeline:
    """Endless iterator of global batches: dicts of arrays (batch_size, ...), read by a thread.

    rows: an opened split. seed: of the order. shuffle: else the rows come in their order.
    start: the position to start from, `next_index` of the pipeline that is continued.
    local_rows: which rows of each global batch to read and give, ascending; by default all. A
    process reads those that its devices need.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        start: int = 0,
        local_rows: Sequence[int] | None = None,
    ):
        if len(rows) == 0:
            raise UserError("the dataset has no rows")
        self.batch_size = batch_size
        self.next_index = start
        parts = getattr(rows, "mixture", ((len(rows), 1.0),))
        order = Order(parts, seed=seed, shuffle=shuffle)
        places = range(batch_size) if local_rows is None else [int(row) for row in local_rows]
        batches = _Batches(rows, order, start, batch_size, places, seed)
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
    seed: int

    def __len__(self) -> int:
        return sys.maxsize  # endless

    def __getitem__(self, b: int) -> Batch:
        first = self.start + b * self.batch_size
        return stack([self._row(first + place) for place in self.places])

    def _row(self, position: int) -> Mapping[str, np.ndarray]:
        """Rows that training varies are a function of the seed and the position alone."""
        augmented, index = getattr(self.rows, "augmented", None), self.order(position)
        if augmented is None:
            return self.rows[index]
        return augmented(index, np.random.default_rng([self.seed, position, 1]))


def stack(rows: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    """Rows as one batch."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def filled_up(
    rows: Sequence[Mapping[str, np.ndarray]], size: int, columns: Columns
) -> dict[str, np.ndarray]:
    """A batch of the columns of a few rows; those behind them are padding, as FILLS says."""
    batch = {name: spec.filled(size) for name, spec in columns.items()}
    for name, filled in batch.items():
        filled[: len(rows)] = np.stack([row[name] for row in rows])
    return {**batch, FILLS: np.arange(size) >= len(rows)}


# Evaluation


@dataclass(frozen=True)
class EvaluationBatches:
    """The rows in their order, each exactly once; at most `limit` batches.

    The last batch is filled up with rows of padding, which no loss and no statistic counts: of the
    columns' own, else of zeros; FILLS (types.py) says which they are. local_rows: which rows of
    each batch to read and give, as in `Pipeline`.
    """

    rows: Rows
    batch_size: int
    limit: int | None = None
    local_rows: Sequence[int] | None = None
    columns: Columns = field(default_factory=dict)

    def __len__(self) -> int:
        batches = -(-len(self.rows) // self.batch_size)
        return batches if self.limit is None else min(self.limit, batches)

    def __iter__(self) -> Iterator[Batch]:
        rows, local = self.rows, self.local_rows
        places = range(self.batch_size) if local is None else [int(row) for row in local]
        filling = {name: spec.padding for name, spec in self.columns.items()}
        padding = {
            name: np.full_like(value, filling.get(name, 0)) for name, value in rows[0].items()
        }
        for b in range(len(self)):
            numbers = [b * self.batch_size + place for place in places]
            batch = stack([rows[i] if i < len(rows) else padding for i in numbers])
            fills = np.array(numbers) >= len(rows)
            yield {**batch, FILLS: fills} if fills.any() else batch
