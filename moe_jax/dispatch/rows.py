"""The rows layout: all kept rows of a shard, sorted by expert, without padding between experts.

Dropless without waste; the experts multiply by groups of rows (ops/grouped_matmul).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.ops.permute import combine_rows, gather_rows, invert_index, take_or_zero
from moe_jax.routing.types import Plan


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SortedRows:
    """Where the rows of g groups stand after sorting by (expert, group, slot).

    place_gR: position of each row among M = g * R sorted rows; M: not kept.
    row_M: the flat row g * R + r at each position; M: none (past the last kept row).
    sizes_E: kept rows per expert.
    """

    place_gR: Int[Array, "g R"]
    row_M: Int[Array, "M"]
    sizes_E: Int[Array, "E"]


def sort_rows(plan_g: Plan) -> SortedRows:
    """Sorts by counting: a row's slot is already its place within (expert, group)."""
    a = plan_g.assignments
    sizes_gE = plan_g.accepted_E
    g, R = a.expert_R.shape
    sizes_E = jnp.sum(sizes_gE, axis=0, dtype=jnp.int32)
    start_E = jnp.cumsum(sizes_E) - sizes_E
    start_gE = start_E[None, :] + jnp.cumsum(sizes_gE, axis=0) - sizes_gE
    expert_gR = jnp.where(plan_g.kept_R, a.expert_R, 0)
    start_gR = jnp.take_along_axis(start_gE, expert_gR, axis=1)
    place_gR = jnp.where(plan_g.kept_R, start_gR + plan_g.slot_R, g * R).astype(jnp.int32)
    return SortedRows(
        place_gR=place_gR, row_M=invert_index(place_gR.reshape(-1), g * R), sizes_E=sizes_E
    )


def to_rows(x_gTD: Float[Array, "g T D"], plan_g: Plan, order: SortedRows) -> Float[Array, "M D"]:
    """The sorted rows; zeros past the last kept row."""
    a = plan_g.assignments
    g, T, D = x_gTD.shape
    x_ND = x_gTD.reshape(g * T, D)
    if a.k is not None:
        # The flat row index g * (T k) + t k + i divides to the flat token g * T + t.
        return gather_rows(x_ND, order.row_M // a.k, order.place_gR.reshape(g * T, a.k))
    token_M = _flat_tokens(plan_g).at[order.row_M].get(mode="fill", fill_value=g * T)
    return take_or_zero(x_ND, token_M)


def from_rows(y_MD: Float[Array, "M D"], plan_g: Plan, order: SortedRows) -> Float[Array, "g T D"]:
    """Each token's weighted sum of its rows."""
    a = plan_g.assignments
    g, D = a.expert_R.shape[0], y_MD.shape[-1]
    if a.k is not None:
        weight_NK = a.weight_R.reshape(g * a.T, a.k)
        place_NK = order.place_gR.reshape(g * a.T, a.k)
        y_ND = combine_rows(y_MD, weight_NK, place_NK, order.row_M)
        return y_ND.reshape(g, a.T, D)
    rows_RD = take_or_zero(y_MD, order.place_gR.reshape(-1)).astype(jnp.float32)
    rows_RD *= a.weight_R.reshape(-1, 1)
    y_ND = jnp.zeros((g * a.T, D), jnp.float32).at[_flat_tokens(plan_g)].add(rows_RD)
    return y_ND.astype(y_MD.dtype).reshape(g, a.T, D)


def _flat_tokens(plan_g: Plan) -> Int[Array, "M"]:
    a = plan_g.assignments
    g = a.expert_R.shape[0]
    group_g1 = jnp.arange(g, dtype=jnp.int32)[:, None]
    return (a.token_R + group_g1 * a.T).reshape(-1)
