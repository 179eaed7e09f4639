"""The next item: ranks by hand, what is excluded, what counts, and the model that learns it."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from moe_jax.data.tokenizer import IdTokenizer
from moe_jax.data.types import DataInfo
from moe_jax.nn.predictions import GivenLogits, Predictions
from moe_jax.routing.plan import add_sums
from moe_jax.tasks.next_item import NextItem, ranking

B, S, V, D = 12, 6, 24, 5
ITEMS = 21  # of V ids; the others fill up the vocabulary
TASK = NextItem().start(V, DataInfo(tokenizer=IdTokenizer(ITEMS)))


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    lengths = random.integers(2, S + 2, B)
    tokens = np.stack([random.permutation(np.arange(1, ITEMS))[: S + 1] for _ in range(B)])
    segments = (np.arange(S + 1)[None] < lengths[:, None]).astype(np.int32)
    tokens, held = (tokens * segments).astype(np.int32), (lengths - 2).astype(np.int32)
    seen = np.zeros((B, ITEMS), np.int32)
    for row, length in enumerate(lengths):
        seen[row, tokens[row, : length - 1]] = 1
        seen[row, random.integers(1, ITEMS)] |= row % 3 == 0  # before the row's window
    hidden = random.normal(size=(B, S, D)).astype(np.float32)
    head = np.round(random.normal(size=(D, V)), 1).astype(np.float32)
    head[:, 5] = head[:, 7]  # equal scores
    predictions = Predictions(hidden_BSD=jnp.asarray(hidden), head_DV=jnp.asarray(head))
    raw = {"tokens": tokens, "segments": segments, "held": held, "seen": seen}
    raw["row"] = np.arange(B, dtype=np.int32)
    return predictions, {name: jnp.asarray(x) for name, x in raw.items()}


def by_hand(predictions, raw):
    logits = np.asarray(predictions.logits_BSV)
    found = []
    for b in range(B):
        place = int(raw["held"][b])
        target = int(raw["tokens"][b, place + 1])
        rivals = [i for i in range(1, ITEMS) if i != target and not raw["seen"][b, i]]
        found.append(1 + sum(logits[b, place, i] >= logits[b, place, target] for i in rivals))
    return found


def test_ranks_are_among_all_items_that_were_not_seen(batch):
    predictions, raw = batch
    assert TASK.ranks(predictions, raw).tolist() == by_hand(*batch)
    given = GivenLogits(logits_BSV=predictions.logits_BSV)
    assert TASK.ranks(given, raw).tolist() == by_hand(*batch)
    constant = replace(predictions, head_DV=jnp.zeros_like(predictions.head_DV))
    wanted = [ITEMS - 1 - int(np.asarray(raw["seen"])[b].sum()) for b in range(B)]
    # Of a target that stands in `seen` already nothing is taken off twice.
    again = [int(raw["seen"][b, raw["tokens"][b, raw["held"][b] + 1]]) for b in range(B)]
    assert TASK.ranks(constant, raw).tolist() == [w + a for w, a in zip(wanted, again, strict=True)]


def test_figures_are_those_of_a_list_with_one_right_item(batch):
    ranks = np.array(by_hand(*batch), np.float64)
    found = TASK.metrics(TASK.sums(*batch), jax.device_get(TASK.rows(*batch)))
    relevant = np.zeros((B, ITEMS))
    relevant[np.arange(B), ranks.astype(int) - 1] = 1
    scores = -np.broadcast_to(np.arange(ITEMS), relevant.shape)
    assert found["ndcg_at_10"] == pytest.approx(sk.ndcg_score(relevant, scores, k=10))
    assert found["hit_rate_at_10"] == np.mean(ranks <= 10)
    assert found["mean_reciprocal_rank"] == pytest.approx(np.mean(1 / ranks))
    assert set(NextItem().figures()) <= found.keys()
    assert ranking(np.array([1.0, 11.0]))["ndcg_at_10"] == 0.5


def test_only_what_was_held_out_counts_where_something_was(batch):
    predictions, raw = batch
    mask = np.asarray(TASK.target_mask(raw))
    assert mask.sum(axis=1).tolist() == [1] * B
    every = {**raw, "held": jnp.full(B, -1, jnp.int32)}
    assert TASK.target_mask(every).sum() == (np.asarray(raw["segments"]).sum(axis=1) - 1).sum()
    assert TASK.ranks(predictions, every).tolist() == [0] * B
    assert "ndcg_at_10" not in TASK.metrics(
        TASK.sums(predictions, every), jax.device_get(TASK.rows(predictions, every))
    )
    padding = {name: jnp.zeros_like(x) for name, x in raw.items()} | {"held": every["held"]}
    assert TASK.weights(padding)["nats"] == 0 and TASK.sums(predictions, padding)["nats"] == 0
    log_prob = np.asarray(jax.nn.log_softmax(predictions.logits_BSV))
    nats = [
        -log_prob[b, s, raw["tokens"][b, s + 1]] for b, s in zip(*np.nonzero(mask), strict=True)
    ]
    sums = TASK.sums(predictions, raw)
    assert float(sums["nats"]) == pytest.approx(np.sum(nats), 1e-5) and sums["targets"] == B
    halves = []
    for rows in (slice(0, 5), slice(5, B)):
        part = replace(predictions, hidden_BSD=predictions.hidden_BSD[rows])
        halves.append(TASK.sums(part, {name: x[rows] for name, x in raw.items()}))
    added = add_sums(*halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), added, sums)
