"""The next item of a history, ranked among all items that are not in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from moe_jax.config.fields import Rule
from moe_jax.data.types import Columns, DataInfo
from moe_jax.models.types import IO
from moe_jax.nn.context import TokenBatch
from moe_jax.nn.predictions import GivenLogits, Predictions
from moe_jax.tasks.next_target import NextTarget
from moe_jax.tasks.types import Arrays, Headline, RawBatch, Sums

CUT = 10  # of HR@10 and NDCG@10


@dataclass(frozen=True, kw_only=True)
class NextItem:
    """A model that reads items in their order (`decoder`: a history is a text whose words are
    items) learns each next one by a softmax over all items, and is asked for the one that was held
    out. SASRec, Kang and McAuley (1808.09781); we differ: its loss is of one drawn other item."""

    headlines: ClassVar = (Headline("ndcg_at_10", "max"), Headline("cross_entropy", "min"))

    def reads(self, columns: Columns) -> tuple[str, ...]:
        return ("tokens", "segments", "held", "seen")

    def io(self, columns: Columns) -> IO:
        return IO(length=columns["tokens"].shape[0] - 1)

    def completed(self, info: DataInfo) -> NextItem:
        return self

    def fits(self, info: DataInfo) -> Iterator[Rule]:
        if info.tokenizer is None:
            yield "kind", "is of items, and the data has no ids of them"

    def figures(self) -> tuple[str, ...]:
        return ("cross_entropy", "hit_rate_at_10", "ndcg_at_10", "mean_reciprocal_rank")

    def start(self, vocabulary: int, info: DataInfo) -> ItemOfHistory:
        assert info.tokenizer is not None
        return ItemOfHistory(info.tokenizer.vocab_size)


class ItemOfHistory(NextTarget):
    """Rows of S + 1 items, 0 behind them; `held` is the place of the one target of a row, -1: each
    next item is one. items: ids 1 .. items - 1. Sums: nats (the loss), targets."""

    counters: ClassVar = ("targets",)
    losses: ClassVar = ("cross_entropy",)

    def __init__(self, items: int):
        self._items = items

    def inputs(self, raw: RawBatch) -> TokenBatch:
        return self.packed(raw)

    def target_mask(self, raw: RawBatch) -> Bool[Array, "B S"]:
        held_B1 = jnp.asarray(raw["held"])[:, None]
        counts_BS = super().target_mask(raw)
        place_S = jnp.arange(counts_BS.shape[1], dtype=jnp.int32)
        return counts_BS & ((held_B1 < 0) | (place_S[None] == held_B1))

    def sums(self, predictions: Predictions | GivenLogits, raw: RawBatch) -> Sums:
        return {
            "nats": jnp.sum(self.token_losses(predictions, raw)),
            "targets": jnp.sum(self.target_mask(raw), dtype=jnp.int32),
        }

    def rows(self, predictions: Predictions | GivenLogits, raw: RawBatch) -> dict[str, Array]:
        """The rank of each row's target."""
        return {"rank": self.ranks(predictions, raw)}

    def ranks(self, predictions: Predictions | GivenLogits, raw: RawBatch) -> Int[Array, "B"]:
        """Of the one target of a row among the items that were not seen before it, from 1; of equal
        scores the target is the last. 0 of rows without such a target."""
        held_B, tokens = jnp.asarray(raw["held"]), jnp.asarray(raw["tokens"])
        logits_BV = predictions.at(jnp.maximum(held_B, 0))
        target_B = jnp.take_along_axis(tokens, jnp.maximum(held_B, 0)[:, None] + 1, axis=1)[:, 0]
        id_1V = jnp.arange(logits_BV.shape[1], dtype=jnp.int32)[None]
        beyond = id_1V.shape[1] - raw["seen"].shape[1]
        seen_BV = jnp.pad(jnp.asarray(raw["seen"]) > 0, ((0, 0), (0, beyond)))
        rival_BV = (id_1V > 0) & (id_1V < self._items) & ~seen_BV & (id_1V != target_B[:, None])
        own_B1 = jnp.take_along_axis(logits_BV, target_B[:, None], axis=1)
        before_B = jnp.sum(rival_BV & (logits_BV >= own_B1), axis=1, dtype=jnp.int32)
        return jnp.where((held_B >= 0) & (target_B > 0), before_B + 1, 0)

    def metrics(self, sums: Arrays, rows: Arrays | None = None) -> dict[str, float]:
        """cross_entropy: nats per target, over all items. Of the ranks of rows with one target:
        hit_rate_at_10, the share of ranks up to 10; ndcg_at_10, mean of 1 / log2(rank + 1) of
        these, 0 of the others; mean_reciprocal_rank."""
        metrics = {"cross_entropy": float(sums["nats"]) / max(float(sums["targets"]), 1.0)}
        rank = np.asarray(rows["rank"], np.float64) if rows else np.zeros(0)
        rank = rank[rank > 0]
        return metrics | (ranking(rank) if len(rank) else {})


def ranking(rank_N: np.ndarray) -> dict[str, float]:
    """The figures of ranks, from 1, each of the one right item of a list."""
    hit_N = rank_N <= CUT
    return {
        "hit_rate_at_10": float(np.mean(hit_N)),
        "ndcg_at_10": float(np.mean(np.where(hit_N, 1 / np.log2(rank_N + 1), 0))),
        "mean_reciprocal_rank": float(np.mean(1 / rank_N)),
    }
