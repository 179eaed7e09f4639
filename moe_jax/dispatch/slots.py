"""The slots layout: every expert has a buffer of C slots per group, (E, C, D).

Fixed shapes whatever the load, so any transport can carry it; slots that nobody fills are
computed and thrown away. Two ways to fill the buffer: a one-hot einsum (GShard; arithmetic
2 T E C D each way, all matmul) and a scatter (no arithmetic).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.ops.permute import combine_rows, gather_rows, invert_index, take_or_zero
from moe_jax.routing.types import Plan, SoftPlan

# --- one group; the caller vmaps ---


def einsum_maps(plan: Plan | SoftPlan) -> tuple[Float[Array, "T E C"], Float[Array, "T E C"]]:
    """Dispatch (0 or 1) and combine (weights) maps of a plan."""
    if isinstance(plan, SoftPlan):
        return plan.dispatch_TEC, plan.combine_TEC
    a, C = plan.assignments, plan.slots
    expert_R = jnp.where(plan.kept_R, a.expert_R, a.E)
    empty_TEC = jnp.zeros((a.T, a.E, C), jnp.float32)
    at = empty_TEC.at[a.token_R, expert_R, plan.slot_R]
    return at.set(1.0, mode="drop"), at.add(a.weight_R, mode="drop")


def to_slots_einsum(x_TD: Float[Array, "T D"], plan: Plan | SoftPlan) -> Float[Array, "E C D"]:
    dispatch_TEC, _ = einsum_maps(plan)
    x_ECD = jnp.einsum("TEC,TD->ECD", dispatch_TEC, x_TD.astype(jnp.float32))
    return x_ECD.astype(x_TD.dtype)


def from_slots_einsum(y_ECD: Float[Array, "E C D"], plan: Plan | SoftPlan) -> Float[Array, "T D"]:
    _, combine_TEC = einsum_maps(plan)
    y_TD = jnp.einsum("TEC,ECD->TD", combine_TEC, y_ECD.astype(jnp.float32))
    return y_TD.astype(y_ECD.dtype)


def _places(plan: Plan) -> tuple[Int[Array, "R"], Int[Array, "M"]]:
    """Where each row goes in the flat buffer of M = E * C slots (M: nowhere), and the row that
    fills each slot (R: none)."""
    a, C = plan.assignments, plan.slots
    M = a.E * C
    place_R = jnp.where(plan.kept_R, a.expert_R * C + plan.slot_R, M).astype(jnp.int32)
    return place_R, invert_index(place_R, M)


def to_slots_scatter(x_TD: Float[Array, "T D"], plan: Plan) -> Float[Array, "E C D"]:
    a, C = plan.assignments, plan.slots
    place_R, row_M = _places(plan)
    if a.k is not None:
        # Row r belongs to token r // k; no row (R = T * k) gives T, which reads zeros.
        x_MD = gather_rows(x_TD, row_M // a.k, place_R.reshape(a.T, a.k))
    else:
        token_M = a.token_R.at[row_M].get(mode="fill", fill_value=a.T)
        x_MD = take_or_zero(x_TD, token_M)
    return x_MD.reshape(a.E, C, -1)


def from_slots_scatter(y_ECD: Float[Array, "E C D"], plan: Plan) -> Float[Array, "T D"]:
    a = plan.assignments
    place_R, row_M = _places(plan)
    y_MD = y_ECD.reshape(-1, y_ECD.shape[-1])
    if a.k is not None:
        weight_TK = a.weight_R.reshape(a.T, a.k)
        return combine_rows(y_MD, weight_TK, place_R.reshape(a.T, a.k), row_M)
    rows_RD = take_or_zero(y_MD, place_R).astype(jnp.float32) * a.weight_R[:, None]
    y_TD = jnp.zeros((a.T, y_ECD.shape[-1]), jnp.float32).at[a.token_R].add(rows_RD)
    return y_TD.astype(y_ECD.dtype)


# --- all groups ---

# A SoftPlan goes through the einsum only.
FILLS: dict[str, tuple[Callable[..., Array], Callable[..., Array]]] = {
    "slots_einsum": (to_slots_einsum, from_slots_einsum),
    "slots_scatter": (to_slots_scatter, from_slots_scatter),
}


def through_slots(
    x_gTD: Float[Array, "g T D"],
    plan_g: Plan | SoftPlan,
    layout: str,
    run: Callable[[Array], Array],
) -> Float[Array, "g T D"]:
    """Fills the buffers by a layout of FILLS, runs the experts on them (g, E, C, D), combines."""
    fill, drain = FILLS[layout]
    x_gECD = jax.vmap(fill)(x_gTD, plan_g)
    return jax.vmap(drain)(run(x_gECD), plan_g)
