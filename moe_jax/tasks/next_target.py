"""What objectives share that predict each next id of a row."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.nn.context import TokenBatch
from moe_jax.nn.predictions import GivenLogits, Predictions
from moe_jax.tasks.types import RawBatch


class NextTarget:
    """Rows of S + 1 ids: the first S are inputs, the last S targets.

    A target counts where it belongs to the same segment as its input and is not padding. ids,
    segments: the columns that have them. The loss `nats` is a mean over the targets that count.
    """

    ids: ClassVar[str] = "tokens"
    segments: ClassVar[str] = "segments"

    def packed(self, raw: RawBatch, task_B: Int[Array, "B"] | None = None) -> TokenBatch:
        """The first S of each row."""
        ids, segments = raw[self.ids][:, :-1], raw[self.segments][:, :-1]
        return TokenBatch.packed(ids, segments, raw["row"], task_B)

    def targets(self, raw: RawBatch) -> Int[Array, "B S"]:
        return jnp.asarray(raw[self.ids][:, 1:])

    def target_mask(self, raw: RawBatch) -> Bool[Array, "B S"]:
        here, following = raw[self.segments][:, :-1], raw[self.segments][:, 1:]
        return (here == following) & (following > 0)

    def weights(self, raw: RawBatch) -> dict[str, Float[Array, ""]]:
        """Targets that count."""
        targets = jnp.sum(self.target_mask(raw), dtype=jnp.int32)
        return {"nats": targets.astype(jnp.float32)}

    def token_losses(
        self, predictions: Predictions | GivenLogits, raw: RawBatch
    ) -> Float[Array, "B S"]:
        """-log p(target), 0 where no target counts."""
        nll_BS, _ = predictions.of_targets(self.targets(raw))
        return jnp.where(self.target_mask(raw), nll_BS, 0)

    def rows(self, predictions: Predictions | GivenLogits, raw: RawBatch) -> dict[str, Array]:
        return {}
