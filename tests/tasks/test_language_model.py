"""Next-token prediction on packed rows, against numpy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.nn.context import segment_positions
from moe_jax.nn.predictions import GivenLogits
from moe_jax.tasks.language_model import NextToken

V = 7
# Two documents and padding; one document; nothing at all; a document of one token.
SEGMENTS = np.array(
    [[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0], [1, 2, 2, 2, 0, 0, 0]],
    np.int32,
)
BYTES = np.array([0, 1, 1, 2, 3, 1, 4])


@pytest.fixture
def raw():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, SEGMENTS.shape).astype(np.int32)
    return {"tokens": tokens, "segments": SEGMENTS, "row": np.arange(4, dtype=np.int32)}


def logits(seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (4, SEGMENTS.shape[1] - 1, V)).astype(np.float32)


def given(logits_BSV):
    return GivenLogits(logits_BSV=jnp.asarray(logits_BSV))


def on_device(raw):
    return jax.tree.map(jnp.asarray, raw)


def targets(raw):
    """(row, place) of each counted input token, by walking through the rows."""
    for b, segments in enumerate(raw["segments"]):
        for s in range(len(segments) - 1):
            if segments[s] and segments[s] == segments[s + 1]:
                yield b, s


def test_sums_are_those_of_the_counted_targets(raw):
    logits_BSV = logits()
    sums = NextToken(BYTES).sums(given(logits_BSV), on_device(raw))
    nats = correct = tokens = total_bytes = 0
    for b, s in targets(raw):
        row, target = logits_BSV[b, s].astype(np.float64), raw["tokens"][b, s + 1]
        nats += np.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
        correct += int(np.argmax(row) == target)
        total_bytes += BYTES[target]
        tokens += 1
    assert tokens == 2 + 1 + 6 + 2
    np.testing.assert_allclose(sums["nats"], nats, rtol=1e-6)
    counts = int(sums["correct"]), int(sums["tokens"]), int(sums["bytes"])
    assert counts == (correct, tokens, total_bytes)
    assert {leaf.dtype for leaf in (sums["correct"], sums["tokens"], sums["bytes"])} == {
        np.dtype("int32")
    }


def test_what_is_not_a_target_counts_for_nothing(raw):
    """Neither the logits nor the tokens of padding, and no step from one document to the next."""
    task = NextToken(BYTES)
    counted = np.zeros(SEGMENTS[:, 1:].shape, bool)
    for place in targets(raw):
        counted[place] = True
    np.testing.assert_array_equal(task.target_mask(on_device(raw)), counted)

    def nats(logits_BSV):
        return task.sums(given(logits_BSV), on_device(raw))["nats"]

    first = logits()
    second = np.where(counted[:, :, None], first, 1e4 * logits(2))
    assert float(nats(first)) == float(nats(second))
    gradient = np.asarray(jax.grad(nats)(jnp.asarray(first)))
    assert np.all(gradient[~counted] == 0)
    assert np.all(np.abs(gradient[counted]).max(-1) > 0)


def test_inputs_are_the_row_without_its_last_token(raw):
    batch = NextToken(BYTES).inputs(on_device(raw))
    np.testing.assert_array_equal(batch.token_BS, raw["tokens"][:, :-1])
    np.testing.assert_array_equal(batch.segment_BS, SEGMENTS[:, :-1])
    np.testing.assert_array_equal(batch.row_B, raw["row"])
    expected = [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 0, 1]]
    np.testing.assert_array_equal(batch.position_BS, expected)


def test_positions_do_not_depend_on_the_numbers_of_the_segments():
    segments = jnp.asarray([[9, 9, 4, 4, 4, 9]], jnp.int32)
    np.testing.assert_array_equal(segment_positions(segments), [[0, 1, 0, 1, 2, 0]])


def test_metrics():
    """Four targets, each with probability 1/8, of two bytes each."""
    sums = {"nats": 4 * np.log(8), "correct": 1, "tokens": 4, "bytes": 8}
    metrics = NextToken.metrics(sums)
    assert metrics == pytest.approx(
        {"cross_entropy": np.log(8), "perplexity": 8, "accuracy": 0.25, "bits_per_byte": 1.5}
    )


def test_metrics_of_no_bytes_and_of_a_huge_loss():
    metrics = NextToken.metrics({"nats": 1e6, "correct": 0, "tokens": 1, "bytes": 0})
    assert "bits_per_byte" not in metrics
    assert np.isfinite(metrics["perplexity"])
