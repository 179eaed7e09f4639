"""Fits assignments into capacity."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from moe_jax.routing.types import Assignments, Plan, SoftPlan, Traffic

Tree = TypeVar("Tree")  # Sums or Traffic


def one_hot(expert: Int[Array, "*R"], E: int) -> Bool[Array, "*R {E}"]:
    """Whether each entry is expert 0..E-1; all False for the ids of unused rows."""
    experts_E = jnp.arange(E, dtype=expert.dtype).reshape((1,) * expert.ndim + (E,))
    return expert[..., None] == experts_E


def count_experts(expert_R: Int[Array, "R"], mask_R: Bool[Array, "R"], E: int) -> Int[Array, "{E}"]:
    """Rows per expert 0..E-1 among those of the mask, int32."""
    is_expert_RE = one_hot(expert_R, E)
    return jnp.sum(is_expert_RE & mask_R[:, None], axis=0, dtype=jnp.int32)


def queue_position(expert_R: Int[Array, "R"], E: int) -> Int[Array, "R"]:
    """How many earlier rows want the same expert; rows of no expert 0..E-1 get 0.

    A counting pass, R x E integers, in place of a sort: it is also what sorts rows by expert.
    """
    is_expert_RE = one_hot(expert_R, E).astype(jnp.int32)
    before_RE = jnp.cumsum(is_expert_RE, axis=0) - is_expert_RE
    return jnp.sum(before_RE * is_expert_RE, axis=1, dtype=jnp.int32)


def make_plan(assignments: Assignments, capacity: int | None) -> Plan:
    """Serves rows by ascending (priority, row) until each expert's `capacity` is full.

    ONE group; vmap it over groups. Ties of priority go to the lower row. Unused rows and rows of
    null experts take no slot and are never kept. capacity None keeps every other row.
    """
    a = assignments
    if a.priority_R is None:
        slot_R = queue_position(a.expert_R, a.E)
    else:
        order_R = jnp.argsort(a.priority_R, stable=True)
        served_R = queue_position(a.expert_R[order_R], a.E)
        slot_R = jnp.zeros_like(served_R).at[order_R].set(served_R, unique_indices=True)
    kept_R = a.expert_R < a.E
    if capacity is not None:
        kept_R &= slot_R < capacity
    accepted_E = count_experts(a.expert_R, kept_R, a.E)
    return Plan(
        assignments=a, slot_R=slot_R, kept_R=kept_R, accepted_E=accepted_E, capacity=capacity
    )


def plan_traffic(plan: Plan | SoftPlan, valid_T: Bool[Array, "T"]) -> Traffic:
    """Counts of one group's plan; `overflow` is the dispatcher's to fill in."""
    zero = jnp.zeros((), jnp.int32)
    if isinstance(plan, SoftPlan):
        _, E, C = plan.dispatch_TEC.shape
        full_E = jnp.full((E,), C, jnp.int32)
        return Traffic(
            accepted_E=full_E,
            dropped=zero,
            dropped_tokens=zero,
            overflow=zero,
            slots=jnp.full((), E * C, jnp.int32),
        )
    a = plan.assignments
    wanted_R = a.expert_R < a.E
    dropped = jnp.sum(wanted_R & ~plan.kept_R, dtype=jnp.int32)
    # A token served by a null expert has lost nothing.
    served_R = plan.kept_R | ((a.expert_R >= a.E) & (a.expert_R < a.unused))
    if a.k is not None:
        wanting_T = jnp.any(wanted_R.reshape(a.T, a.k), axis=1)
        served_T = jnp.any(served_R.reshape(a.T, a.k), axis=1)
    else:
        wanting_T = jnp.zeros((a.T,), bool).at[a.token_R].max(wanted_R)
        served_T = jnp.zeros((a.T,), bool).at[a.token_R].max(served_R)
    lost_T = wanting_T & ~served_T & valid_T
    return Traffic(
        accepted_E=plan.accepted_E,
        dropped=dropped,
        dropped_tokens=jnp.sum(lost_T, dtype=jnp.int32),
        overflow=zero,
        slots=jnp.full((), a.E * (plan.capacity or 0), jnp.int32),
    )


def reduce_sums(tree: Tree, axis: int | tuple[int, ...] = 0) -> Tree:
    """Sums additive statistics (Sums, Traffic) over leading axes; counts stay int32."""
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=axis, dtype=leaf.dtype), tree)


def renormalize_kept(plan: Plan) -> Plan:
    """Scales the weights of a token's kept rows to the sum that all its rows had before drops.

    w_r <- w_r * (sum of the token's weights) / (sum of its kept weights). Tokens that lost all
    their rows stay at zero. Some codebases do this, the papers (Switch, GShard, V-MoE) do not.
    """
    a = plan.assignments
    kept_weight_R = jnp.where(plan.kept_R, a.weight_R, 0)
    kept_T = jnp.zeros((a.T,), jnp.float32).at[a.token_R].add(kept_weight_R)
    all_T = (
        jnp.zeros((a.T,), jnp.float32).at[a.token_R].add(jnp.where(a.expert_R < a.E, a.weight_R, 0))
    )
    scale_T = jnp.where(kept_T > 0, all_T / jnp.where(kept_T > 0, kept_T, 1), 1)
    weight_R = a.weight_R * scale_T[a.token_R]
    return dataclasses.replace(plan, assignments=dataclasses.replace(a, weight_R=weight_R))
