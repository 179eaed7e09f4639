"""The rows layout: all kept rows of a shard, sorted by expert, without padding between experts.

Dropless without waste; the experts multiply by groups of rows (ops/grouped_matmul).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.ops.permute import combine_rows, gather_rows, invert_index, take_or_zero
from moe_jax.routing.types import Plan, SoftPlan


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SortedRows:
    """Where the rows of g groups stand after sorting by (expert, group, slot).

    M: the length of the buffer, g * R or less. place_gR: position of each row; M: none.
    row_M: the flat row g * R + r at each position; the number of rows: none (past the last one).
    sizes_E: rows per expert. lost_gR: kept rows for which the buffer is too short.
    """

    place_gR: Int[Array, "g R"]
    row_M: Int[Array, "M"]
    sizes_E: Int[Array, "E"]
    lost_gR: Bool[Array, "g R"]


def sort_rows(plan_g: Plan, limit: int | None = None) -> SortedRows:
    """Sorts by counting: a row's slot is already its place within (expert, group).

    limit: length of the buffer where it is shorter than all rows; the last ones are lost.
    """
    a = plan_g.assignments
    sizes_gE = plan_g.accepted_E
    g, R = a.expert_R.shape
    M = g * R if limit is None else min(limit, g * R)
    sizes_E = jnp.sum(sizes_gE, axis=0, dtype=jnp.int32)
    start_E = jnp.cumsum(sizes_E) - sizes_E
    start_gE = start_E[None, :] + jnp.cumsum(sizes_gE, axis=0) - sizes_gE
    expert_gR = jnp.where(plan_g.kept_R, a.expert_R, 0)
    start_gR = jnp.take_along_axis(start_gE, expert_gR, axis=1)
    place_gR = start_gR + plan_g.slot_R
    fits_gR = plan_g.kept_R & (place_gR < M)
    place_gR = jnp.where(fits_gR, place_gR, M).astype(jnp.int32)
    return SortedRows(
        place_gR=place_gR,
        row_M=invert_index(place_gR.reshape(-1), M),
        sizes_E=jnp.clip(M - start_E, 0, sizes_E),
        lost_gR=plan_g.kept_R & ~fits_gR,
    )


def through_rows(
    x_gTD: Float[Array, "g T D"],
    plan_g: Plan | SoftPlan,
    run: Callable[[Array, Array], tuple[Array, Array]],
    limit: int | None = None,
) -> tuple[Float[Array, "g T D"], Int[Array, "g"]]:
    """Sorts the rows, runs the experts on them, combines.

    run: (x_MD, sizes_E) -> (y_MD, lost_M), rows that came back as zeros because they did not fit.
    Returns the outputs and, per group, the number of lost rows.
    """
    if isinstance(plan_g, SoftPlan):
        raise ValueError('a SoftPlan mixes tokens into slots: layout "slots_einsum" only')
    order = sort_rows(plan_g, limit)
    y_MD, lost_M = run(to_rows(x_gTD, plan_g, order), order.sizes_E)
    lost_gR = order.lost_gR | lost_M.at[order.place_gR].get(mode="fill", fill_value=False)
    return from_rows(y_MD, plan_g, order), jnp.sum(lost_gR, axis=1, dtype=jnp.int32)


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
