"""Balancing without a loss: a bias that enters the choice of experts and not their weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Margins score - cutoff are counted in so many bins over [-1, 1], further ones in the outermost.
BINS = 1024


def sign_update(
    bias_E: Float[Array, "E"], wanted_E: Int[Array, "E"], rate: float | Array
) -> Float[Array, "E"]:
    """b_e + rate * sign(mean count - count_e). Wang et al. (2408.15664), algorithm 1."""
    # In integers: float32 sums of a large batch flip signs near the mean.
    total, E = jnp.sum(wanted_E), wanted_E.shape[0]
    below_E = (wanted_E < total // E) | ((wanted_E == total // E) & (total % E > 0))
    above_E = wanted_E > total // E
    return bias_E + rate * (below_E.astype(jnp.float32) - above_E.astype(jnp.float32))


def proportional_update(
    bias_E: Float[Array, "E"], wanted_E: Int[Array, "E"], rate: float | Array
) -> Float[Array, "E"]:
    """b_e + rate * (mean count - count_e) / mean count.

    The variant b_e + rate * error_e of 2408.15664, section 4.3, with the error as a share of the
    mean, so that a rate does not depend on the batch size.
    """
    counts_E = wanted_E.astype(jnp.float32)
    mean = jnp.mean(counts_E)
    return bias_E + rate * (mean - counts_E) / jnp.maximum(mean, 1)


def margin_histogram(
    score_TE: Float[Array, "T E"], by_TE: Float[Array, "T E"], k: int, valid_T: Bool[Array, "T"]
) -> Float[Array, "E N"]:
    """How often each expert's score stands at each margin to the token's cutoff: what
    `quantile_bias` needs, and additive over tokens.

    score_TE: scores in [0, 1], without the bias. by_TE: scores with it, by which the k experts are
    chosen. The cutoff of a token is its (k+1)-th largest of `by_TE`. Bins are 2 / BINS wide.
    """
    E = score_TE.shape[1]
    if k >= E:
        return jnp.zeros((E, BINS), jnp.float32)
    cutoff_T1 = jax.lax.top_k(by_TE, k + 1)[0][:, k:]
    part_TE = (jnp.clip(score_TE - cutoff_T1, -1, 1) + 1) / 2
    counted_TE = jnp.broadcast_to(valid_T[:, None].astype(bool), score_TE.shape)
    return count_in_bins(part_TE, counted_TE, BINS)


def quantile_bias(histogram_EN: Float[Array, "E N"], k: int) -> Float[Array, "E"]:
    """b_e = -(quantile 1 - k/E of the margins of e), minus the mean over experts.

    With it k/E of the tokens would have had e above their cutoff. One fixed-point step of the dual
    of the balanced assignment (quantile balancing; Su, 2026); read off a histogram, so exact to
    the width of a bin, with linear interpolation within one.
    """
    E = histogram_EN.shape[0]
    quantile_E = histogram_quantile(histogram_EN, 1 - k / E) * 2 - 1
    bias_E = jnp.mean(quantile_E) - quantile_E
    return jnp.where(jnp.sum(histogram_EN) > 0, bias_E, jnp.zeros_like(bias_E))


def histogram_quantile(histogram_EN: Float[Array, "E N"], below: float) -> Float[Array, "E"]:
    """Where in [0, 1], cut into N equal bins, the share `below` of each row's counts lies below.

    Exact to the width of a bin, with linear interpolation within one. Of an empty row: 0.
    """
    N = histogram_EN.shape[1]
    total_E1 = jnp.sum(histogram_EN, axis=1, keepdims=True)
    below_EN = jnp.cumsum(histogram_EN, axis=1)
    target_E1 = total_E1 * below
    bin_E1 = jnp.argmax(below_EN >= target_E1, axis=1, keepdims=True)
    inside_E1 = jnp.take_along_axis(histogram_EN, bin_E1, axis=1)
    before_E1 = jnp.take_along_axis(below_EN, bin_E1, axis=1) - inside_E1
    part_E1 = (target_E1 - before_E1) / jnp.where(inside_E1 > 0, inside_E1, 1)
    return ((bin_E1.astype(jnp.float32) + part_E1) / N)[:, 0]


def count_in_bins(
    value_TE: Float[Array, "T E"], counted_TE: Bool[Array, "T E"], bins: int
) -> Float[Array, "E {bins}"]:
    """How many of each expert's counted values, in [0, 1], lie in each of equal bins."""
    bin_TE = jnp.clip(jnp.floor(value_TE * bins), 0, bins - 1).astype(jnp.int32)
    expert_TE = jnp.broadcast_to(
        jnp.arange(value_TE.shape[1], dtype=jnp.int32)[None, :], value_TE.shape
    )
    empty_EN = jnp.zeros((value_TE.shape[1], bins), jnp.float32)
    return empty_EN.at[expert_TE, bin_TE].add(counted_TE.astype(jnp.float32))
