"""Balancing without a loss: a bias that enters the choice of experts and not their weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Values are counted between so many marks over [0, 1], margins over [-1, 1].
MARKS = 1024


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


def margins_below(
    score_TE: Float[Array, "T E"], by_TE: Float[Array, "T E"], k: int, valid_T: Bool[Array, "T"]
) -> Float[Array, "E N"]:
    """How many of each expert's scores stand below each margin to the token's cutoff: what
    `quantile_bias` needs, and additive over tokens.

    score_TE: scores in [0, 1], without the bias. by_TE: scores with it, by which the k experts are
    chosen. The cutoff of a token is its (k+1)-th largest of `by_TE`. Marks are 2 / (MARKS - 1)
    apart; margins outside of [-1, 1] are counted at the nearer end.
    """
    E = score_TE.shape[1]
    if k >= E:
        return jnp.zeros((E, MARKS), jnp.float32)
    cutoff_T1 = jax.lax.top_k(by_TE, k + 1)[0][:, k:]
    part_TE = (jnp.clip(score_TE - cutoff_T1, -1, 1) + 1) / 2
    counted_TE = jnp.broadcast_to(valid_T[:, None].astype(bool), score_TE.shape)
    return count_below(part_TE, counted_TE)


def quantile_bias(below_EN: Float[Array, "E N"], k: int) -> Float[Array, "E"]:
    """b_e = -(quantile 1 - k/E of the margins of e), minus the mean over experts.

    With it k/E of the tokens would have had e above their cutoff. One fixed-point step of the dual
    of the balanced assignment (quantile balancing; Su, 2026); read by `counted_quantile`,
    so exact to the distance of two marks.
    """
    E = below_EN.shape[0]
    quantile_E = counted_quantile(below_EN, 1 - k / E) * 2 - 1
    bias_E = jnp.mean(quantile_E) - quantile_E
    return jnp.where(jnp.sum(below_EN) > 0, bias_E, jnp.zeros_like(bias_E))


def count_below(
    value_TE: Float[Array, "T E"], counted_TE: Bool[Array, "T E"], marks: int = MARKS
) -> Float[Array, "E {marks}"]:
    """How many of each expert's counted values, in [0, 1], lie up to each of the marks, softly.

    A value between the marks i and i + 1, f of the way, counts 1 - f at i and f at i + 1; of these
    counts the sums up to each mark. So they are continuous in the values: a value that moves by its
    last bit, as it does from one mesh to another, never hops from one bin into the next. The mean
    of the counted marks is exactly that of the values. The last of the N is how many there are.
    """
    place_TE = jnp.clip(value_TE, 0, 1) * (marks - 1)
    lower_TE = jnp.clip(jnp.floor(place_TE), 0, marks - 2)
    upper_TE = place_TE - lower_TE
    weight_TE, mark_TE = counted_TE.astype(jnp.float32), lower_TE.astype(jnp.int32)
    expert_TE = jnp.broadcast_to(
        jnp.arange(value_TE.shape[1], dtype=jnp.int32)[None, :], value_TE.shape
    )
    at_EN = jnp.zeros((value_TE.shape[1], marks), jnp.float32)
    at_EN = at_EN.at[expert_TE, mark_TE].add(weight_TE * (1 - upper_TE))
    at_EN = at_EN.at[expert_TE, mark_TE + 1].add(weight_TE * upper_TE)
    return jnp.cumsum(at_EN, axis=1)


def counted_quantile(below_EN: Float[Array, "E N"], share: float) -> Float[Array, "E"]:
    """The quantile `share` of each row's values, from the sums of `count_below`. Of an empty row 0.

    A mark's count lies evenly between the middles to its neighbours: the distribution is piecewise
    linear, and so is its inverse. The quantile is the mean of the inverse over one count about
    share * total (Hazen's estimator). That makes it continuous also where `share` falls just
    between two far values: a value that moves by d moves it by d at the most.
    """
    N = below_EN.shape[1]
    total_E1 = below_EN[:, -1:]
    before_EN = jnp.pad(below_EN[:, :-1], ((0, 0), (1, 0)))
    # In a float32 sum of millions, a count of 1 is below the last bit.
    half_E1 = jnp.maximum(0.5, total_E1 * 2.0**-20)
    first_EN = jnp.maximum(before_EN, total_E1 * share - half_E1)
    last_EN = jnp.minimum(below_EN, total_E1 * share + half_E1)
    weight_EN = jnp.maximum(last_EN - first_EN, 0)
    count_EN = below_EN - before_EN
    part_EN = ((first_EN + last_EN) / 2 - before_EN) / jnp.where(count_EN > 0, count_EN, 1)
    edge_N = jnp.clip((jnp.arange(N + 1, dtype=jnp.float32) - 0.5) / (N - 1), 0, 1)
    value_EN = edge_N[None, :-1] + jnp.clip(part_EN, 0, 1) * jnp.diff(edge_N)[None, :]
    weight_E = jnp.sum(weight_EN, axis=1)
    return jnp.sum(weight_EN * value_EN, axis=1) / jnp.where(weight_E > 0, weight_E, 1)
