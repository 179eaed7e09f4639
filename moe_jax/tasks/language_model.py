"""Next-token prediction on packed rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from moe_jax.config.fields import Rule
from moe_jax.data.types import Columns, DataInfo
from moe_jax.models.types import IO
from moe_jax.nn.context import TokenBatch
from moe_jax.nn.predictions import GivenLogits, Predictions
from moe_jax.tasks.next_target import NextTarget
from moe_jax.tasks.types import Arrays, Headline, RawBatch, Sums


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """Predicts the next token."""

    headlines: ClassVar = (Headline("bits_per_byte", "min"), Headline("cross_entropy", "min"))

    def reads(self, columns: Columns) -> tuple[str, ...]:
        return ("tokens", "segments")

    def io(self, columns: Columns) -> IO:
        return IO(length=columns["tokens"].shape[0] - 1)

    def completed(self, info: DataInfo) -> LanguageModel:
        return self

    def fits(self, info: DataInfo) -> Iterator[Rule]:
        if info.tokenizer is None:
            yield "kind", "is of text, and the data has no tokenizer"

    def figures(self) -> tuple[str, ...]:
        return ("cross_entropy", "perplexity", "accuracy", "bits_per_byte")

    def start(self, vocabulary: int, info: DataInfo) -> NextToken:
        assert info.tokenizer is not None
        bytes_V = np.zeros(vocabulary, np.int32)
        bytes_V[: info.tokenizer.vocab_size] = info.tokenizer.bytes_per_token_V
        return NextToken(bytes_V)


class NextToken(NextTarget):
    """bytes_per_token_V: bytes of text that each token id stands for, for bits per byte. Sums: nats
    (the loss), correct, tokens, bytes.
    """

    counters: ClassVar = ("tokens", "bytes")
    losses: ClassVar = ("cross_entropy",)

    def __init__(self, bytes_per_token_V: np.ndarray):
        self._bytes_V = np.asarray(bytes_per_token_V, np.int32)

    def inputs(self, raw: RawBatch) -> TokenBatch:
        return self.packed(raw)

    def sums(self, predictions: Predictions | GivenLogits, raw: RawBatch) -> Sums:
        """-log p(target) and counts, summed over the counted targets, in float32."""
        target_BS, mask_BS = self.targets(raw), self.target_mask(raw)
        nll_BS, best_BS = predictions.of_targets(target_BS)
        bytes_BS = jnp.asarray(self._bytes_V).at[target_BS].get(mode="fill", fill_value=0)
        return {
            "nats": jnp.sum(jnp.where(mask_BS, nll_BS, 0)),
            "correct": jnp.sum(mask_BS & (best_BS == target_BS), dtype=jnp.int32),
            "tokens": jnp.sum(mask_BS, dtype=jnp.int32),
            "bytes": jnp.sum(jnp.where(mask_BS, bytes_BS, 0), dtype=jnp.int32),
        }

    @staticmethod
    def metrics(sums: Arrays, rows: Arrays | None = None) -> dict[str, float]:
        """cross_entropy (nats per target), perplexity, accuracy, bits_per_byte, from sums that
        may have been added up over an evaluation on the host."""
        tokens, nats = max(float(sums["tokens"]), 1.0), float(sums["nats"])
        cross_entropy = nats / tokens
        metrics = {
            "cross_entropy": cross_entropy,
            "perplexity": float(np.exp(min(cross_entropy, 700.0))),
            "accuracy": float(sums["correct"]) / tokens,
        }
        if sums["bytes"]:
            metrics["bits_per_byte"] = nats / float(np.log(2)) / float(sums["bytes"])
        return metrics
