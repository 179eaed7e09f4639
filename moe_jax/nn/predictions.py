"""What a model predicts, and how it is asked: logits, or only what a loss needs of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.ops.cross_entropy import logits_of, nll_and_best, nll_and_best_by_chunks

MAX_LOGITS = 2**28  # bytes of float32 logits on a device that exist at once


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The last hidden states, in the compute type, and the head's matrix, as it is kept.

    chunks: parts of the vocabulary that `of_targets` takes one after the other. shards: devices
    that the vocabulary is split over.
    """

    hidden_BSD: Float[Array, "B S D"]
    head_DV: Float[Array, "D V"]
    chunks: int = field(default=1, metadata={"static": True})
    shards: int = field(default=1, metadata={"static": True})

    @property
    def logits_BSV(self) -> Float[Array, "B S V"]:
        """All logits, float32."""
        return logits_of(self.hidden_BSD, self.head_DV)

    def averaged(self, members: int) -> GivenLogits:
        return GivenLogits(logits_BSV=mean_prediction(self.logits_BSV, members))

    def at(self, place_B: Int[Array, "B"]) -> Float[Array, "B V"]:
        """The logits at one place of each row."""
        hidden = jnp.take_along_axis(self.hidden_BSD, place_B[:, None, None], axis=1)
        return logits_of(hidden, self.head_DV)[:, 0]

    def of_targets(
        self, target_BS: Int[Array, "B S"]
    ) -> tuple[Float[Array, "B S"], Int[Array, "B S"]]:
        """-log p(target) in float32, and the most probable id."""
        if self.chunks == 1:
            return nll_and_best(self.logits_BSV, target_BS)
        return nll_and_best_by_chunks(
            self.hidden_BSD, self.head_DV, target_BS, self.chunks, self.shards
        )

    def mean_nll(
        self, nll_BS: Float[Array, "B S"], target_BS: Int[Array, "B S"]
    ) -> Float[Array, "B S"]:
        """The mean over all ids of -log p(id), float32, from that of the targets: the logarithm of
        the sum is nll + logit(target), and a mean of logits is one product."""
        h_BSD, w_DV = self.hidden_BSD, self.head_DV.astype(self.hidden_BSD.dtype)
        target_BSD = w_DV.T[target_BS].astype(jnp.float32)
        mean_D = jnp.mean(w_DV.astype(jnp.float32), axis=1)
        hit_BS = jnp.sum(h_BSD.astype(jnp.float32) * (target_BSD - mean_D[None, None]), axis=-1)
        return nll_BS + hit_BS


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GivenLogits:
    """Predictions that are there as logits (of an ensemble, of a test)."""

    logits_BSV: Float[Array, "B S V"]

    def averaged(self, members: int) -> GivenLogits:
        return GivenLogits(logits_BSV=mean_prediction(self.logits_BSV, members))

    def at(self, place_B: Int[Array, "B"]) -> Float[Array, "B V"]:
        return jnp.take_along_axis(self.logits_BSV, place_B[:, None, None], axis=1)[:, 0]

    def of_targets(
        self, target_BS: Int[Array, "B S"]
    ) -> tuple[Float[Array, "B S"], Int[Array, "B S"]]:
        return nll_and_best(self.logits_BSV, target_BS)

    def mean_nll(
        self, nll_BS: Float[Array, "B S"], target_BS: Int[Array, "B S"]
    ) -> Float[Array, "B S"]:
        """The mean over all ids of -log p(id)."""
        return -jnp.mean(jax.nn.log_softmax(self.logits_BSV, axis=-1), axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ClassLogits:
    """One prediction a row, float32."""

    logits_BC: Float[Array, "B C"]

    def averaged(self, members: int) -> ClassLogits:
        return ClassLogits(logits_BC=mean_prediction(self.logits_BC, members))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LabelLogits:
    """Of each row whether it has each of the labels, float32 logits."""

    logits_BC: Float[Array, "B C"]

    def averaged(self, members: int) -> LabelLogits:
        """log(p / (1 - p)) of the mean p over members."""
        both_BC2 = jnp.stack([self.logits_BC, jnp.zeros_like(self.logits_BC)], axis=-1)
        log_prob_BC2 = mean_prediction(both_BC2, members)
        return LabelLogits(logits_BC=log_prob_BC2[..., 0] - log_prob_BC2[..., 1])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PixelLogits:
    """One prediction a pixel, float32. grid: patches along height and width. ahead: so many tokens
    of a row stand before them."""

    logits_BHWC: Float[Array, "B H W C"]
    grid: tuple[int, int] = field(metadata={"static": True})
    ahead: int = field(default=0, metadata={"static": True})

    def averaged(self, members: int) -> PixelLogits:
        return replace(self, logits_BHWC=mean_prediction(self.logits_BHWC, members))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TargetValues:
    """A number for each target of a row, float32: the logit of a binary one (the first `binary`),
    the value of a real one. log_variance: of each target, where it is learned."""

    value_BT: Float[Array, "B T"]
    log_variance_T: Float[Array, "T"] | None = None
    binary: int = field(default=0, metadata={"static": True})

    def averaged(self, members: int) -> TargetValues:
        """As those of labels and, of real targets, the mean over members."""
        logits = LabelLogits(logits_BC=self.value_BT[:, : self.binary]).averaged(members).logits_BC
        real_BM = self.value_BT[:, self.binary :].reshape(logits.shape[0], members, -1)
        joined_BT = jnp.concatenate([logits, jnp.mean(real_BM, axis=1)], axis=1)
        return replace(self, value_BT=joined_BT)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BoxPredictions:
    """Of each image Q objects, after each of the L layers that say some, the last one's being the
    answer: float32 logits of each class by itself, and boxes (x, y, w, h) in shares of the image.
    """

    logits_BLQC: Float[Array, "B L Q C"]
    box_BLQ4: Float[Array, "B L Q 4"]

    def averaged(self, members: int) -> BoxPredictions:
        """Query by query, which members share: the mean of the probabilities of each class, and of
        the boxes."""
        box_BM = self.box_BLQ4.reshape(-1, members, *self.box_BLQ4.shape[1:])
        logits = LabelLogits(logits_BC=self.logits_BLQC).averaged(members).logits_BC
        return BoxPredictions(logits_BLQC=logits, box_BLQ4=jnp.mean(box_BM, axis=1))


def mean_prediction(logits_N: Float[Array, "N *S V"], members: int) -> Float[Array, "B *S V"]:
    """log of the mean of the members' probabilities, N = B M: normalised logits."""
    log_prob_N = jax.nn.log_softmax(logits_N, axis=-1)
    log_prob_BM = log_prob_N.reshape(-1, members, *logits_N.shape[1:])
    return jax.nn.logsumexp(log_prob_BM, axis=1) - math.log(members)


def chunks_of(V: int, tokens: int, shards: int, wanted: int | None) -> int:
    """Chunks of the vocabulary for so many tokens a device: `wanted`, or the fewest that divide
    V / shards and keep a chunk's logits within MAX_LOGITS."""
    if wanted is not None:
        return wanted
    own = V // shards
    least = -(-4 * tokens * own // MAX_LOGITS)
    return next((n for n in range(max(least, 1), own + 1) if own % n == 0), own)
