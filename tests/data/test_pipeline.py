from __future__ import annotations

import threading

import numpy as np
import pytest

from moe_jax.config.errors import UserError
from moe_jax.data.mixture import Mixture
from moe_jax.data.pipeline import EvaluationBatches, Pipeline
from moe_jax.data.planted import Planted
from moe_jax.data.stdlib_text import StdlibText
from moe_jax.data.types import FILLS

SMALL = Planted(sequence_length=8, sources=2, symbols=16, rows=10, validation_rows=7)
MIXED = Mixture(
    sequence_length=8,
    parts=("a = planted(rows=10, symbols=16): 0.7", "b = planted(rows=3, symbols=16, seed=1): 0.3"),
)


@pytest.fixture(params=["planted", "mixture", "stdlib_text"])
def rows(request, data_dir):
    text = StdlibText(data_dir=str(data_dir))
    return {"planted": SMALL, "mixture": MIXED, "stdlib_text": text}[request.param].open("train")


def take(rows, number, **options):
    pipeline = Pipeline(rows, options.pop("batch_size", 4), seed=options.pop("seed", 0), **options)
    try:
        return [next(pipeline) for _ in range(number)]
    finally:
        pipeline.close()


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_batches_have_the_fields_of_rows(rows):
    (batch,) = take(rows, 1)
    row = rows[0]
    assert batch.keys() == row.keys()
    for name, values in batch.items():
        assert values.shape == (4, *row[name].shape)
        assert values.dtype == row[name].dtype == np.int32


@pytest.mark.parametrize("after", [0, 1, 2, 3, 8])
def test_going_on_is_exact_over_epochs(rows, after):
    whole = take(rows, 12)  # 48 rows: several epochs of the small sets
    pipeline = Pipeline(rows, 4, seed=0)
    assert_equal([next(pipeline) for _ in range(after)], whole[:after])
    assert pipeline.next_index == 4 * after  # what is read ahead does not count
    pipeline.close()
    assert_equal(take(rows, 12 - after, start=pipeline.next_index), whole[after:])


def test_going_on_with_another_batch_size(rows):
    rest = np.concatenate([b["tokens"] for b in take(rows, 9)])[20:]
    again = np.concatenate([b["tokens"] for b in take(rows, 8, batch_size=2, start=20)])
    np.testing.assert_array_equal(again, rest)


def test_an_epoch_gives_each_row_once_and_the_next_another_order():
    rows = SMALL.open("train")
    epochs = [
        np.concatenate([b["tokens"] for b in take(rows, 5, batch_size=2, start=start)])
        for start in (0, 10)
    ]
    stored = sorted(row.tobytes() for row in rows.tokens)
    for epoch in epochs:
        assert sorted(row.tobytes() for row in epoch) == stored
    assert not np.array_equal(*epochs)


def test_the_seed_decides(rows):
    assert_equal(take(rows, 3), take(rows, 3))
    assert not np.array_equal(take(rows, 3)[2]["tokens"], take(rows, 3, seed=1)[2]["tokens"])


def test_without_shuffling():
    rows = SMALL.open("train")
    tokens = np.concatenate([b["tokens"] for b in take(rows, 3, shuffle=False)])
    np.testing.assert_array_equal(tokens, rows.tokens[[*range(10), 0, 1]])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_read_their_part_of_each_batch(rows, processes):
    whole = take(rows, 5, batch_size=8, start=8)
    size = 8 // processes
    parts = [
        take(rows, 5, batch_size=8, start=8, local_rows=range(p * size, (p + 1) * size))
        for p in range(processes)
    ]
    together = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_equal(together, whole)


def test_a_process_reads_no_more_than_its_rows():
    rows, read = SMALL.open("train"), []

    class Counting(type(rows)):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    counting = Counting(SMALL, "train")
    pipeline = Pipeline(counting, 8, seed=0, local_rows=[6, 7], start=8)
    batch = next(pipeline)
    assert len(batch["tokens"]) == 2
    assert pipeline.next_index == 16  # counted in rows of the global batch
    pipeline.close()
    assert len(read) % 2 == 0
    assert len(read) <= 2 * 8  # of a few batches ahead


def test_shares_of_a_mixture():
    domains = np.concatenate([b["domain"] for b in take(MIXED.open("train"), 25)])
    for period in domains.reshape(-1, 10):
        assert period.sum() == 3


def test_an_error_while_reading_is_the_users_to_see():
    class Broken:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise UserError("the file holds nonsense")

    pipeline = Pipeline(Broken(), 2, seed=0)
    with pytest.raises(UserError, match="nonsense"):
        next(pipeline)
    assert pipeline.next_index == 0
    pipeline.close()


def test_closing_ends_the_thread():
    before = set(threading.enumerate())
    pipeline = Pipeline(SMALL.open("train"), 2, seed=0)
    next(pipeline)
    started = set(threading.enumerate()) - before
    assert started
    pipeline.close()
    pipeline.close()
    for thread in threading.enumerate():
        if "grain" in thread.name:
            thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in started)


def test_no_rows_are_refused():
    with pytest.raises(UserError, match="no rows"):
        Pipeline([], 2, seed=0)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_evaluation_sees_each_row_once_in_order(batch_size):
    rows = SMALL.open("validation")
    batches = list(EvaluationBatches(rows, batch_size))
    assert {len(batch["tokens"]) for batch in batches} == {batch_size}
    names = batches[0].keys() - {FILLS}
    together = {name: np.concatenate([b[name] for b in batches]) for name in names}
    real = together["segments"][:, 0] > 0
    assert all(FILLS not in batch for batch in batches[:-1])
    last = batches[-1].get(FILLS, np.zeros(batch_size, bool))
    np.testing.assert_array_equal(last, ~real[-batch_size:])
    assert real.sum() == 7
    assert real[:7].all()
    np.testing.assert_array_equal(together["tokens"][real], rows.tokens)
    np.testing.assert_array_equal(together["source"][real], rows.sources)
    assert not together["segments"][~real].any()
    assert together["domain"].dtype == np.int32


@pytest.mark.parametrize(("limit", "expected"), [(None, 3), (2, 2), (9, 3)])
def test_evaluation_can_be_limited(limit, expected):
    assert len(list(EvaluationBatches(SMALL.open("validation"), 3, limit))) == expected
