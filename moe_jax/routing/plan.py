"""Fits assignments into capacity."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath
from jaxtyping import Array, Bool, Int

from moe_jax.routing.types import MAX_SERVED, ROW_PARTS, Assignments, Plan, SoftPlan, Sums, Traffic

Tree = TypeVar("Tree")  # Sums, Traffic, or a tree with them in it


def one_hot(expert: Int[Array, "*R"], E: int) -> Bool[Array, "*R {E}"]:
    """Whether each entry is expert 0..E-1; all False for the ids of unused rows."""
    experts_E = jnp.arange(E, dtype=expert.dtype).reshape((1,) * expert.ndim + (E,))
    return expert[..., None] == experts_E


def count_experts(expert_R: Int[Array, "R"], mask_R: Bool[Array, "R"], E: int) -> Int[Array, "{E}"]:
    """Rows per expert 0..E-1 among those of the mask, int32. Memory and time grow with R + E."""
    own_R = jnp.where(mask_R, expert_R, E)
    # A TPU adds to scattered places one after the other, but sorts quickly.
    return jax.lax.platform_dependent(
        own_R,
        tpu=lambda own_R: queues(own_R, E)[1],
        default=lambda own_R: jnp.zeros((E,), jnp.int32).at[own_R].add(1, mode="drop"),
    )


def queues(expert_R: Int[Array, "R"], E: int) -> tuple[Int[Array, "R"], Int[Array, "{E}"]]:
    """How many earlier rows want the same expert (0 for rows of no expert 0..E-1), and how many
    rows each expert has.

    By a sort of R numbers: memory and time do not grow with R x E. (Counting in a table of rows and
    experts is as fast for 8 experts; docs/performance.md.)
    """
    R = expert_R.shape[0]
    row_R = jnp.arange(R, dtype=jnp.int32)
    # The id of no expert may be any number from E on.
    own_R = jnp.minimum(expert_R, E).astype(jnp.int32)
    if R * (E + 1) < 2**31:
        # Expert and row in one number: all are distinct, so the sort need not be stable.
        key_R = jnp.sort(own_R * R + row_R)
        sorted_R, order_R = key_R // max(R, 1), key_R % max(R, 1)
    else:
        order_R = jnp.argsort(own_R, stable=True).astype(jnp.int32)
        sorted_R = own_R[order_R]
    edge_E = jnp.searchsorted(sorted_R, jnp.arange(E + 1, dtype=jnp.int32)).astype(jnp.int32)
    slot_R = jnp.where(sorted_R < E, row_R - edge_E[sorted_R], 0)
    slot_R = jnp.zeros_like(slot_R).at[order_R].set(slot_R, unique_indices=True)
    return slot_R, jnp.diff(edge_E)


def make_plan(assignments: Assignments, capacity: int | None) -> Plan:
    """Serves rows by ascending (priority, row) until each expert's `capacity` is full.

    ONE group; vmap it over groups. Ties of priority go to the lower row. Unused rows and rows of
    null experts take no slot and are never kept. capacity None keeps every other row. Where experts
    chose c tokens each, c is the capacity.
    """
    a = assignments
    capacity = capacity if a.c is None else a.c
    if a.priority_R is None:
        slot_R, accepted_E = queues(a.expert_R, a.E)
    else:
        order_R = jnp.argsort(a.priority_R, stable=True)
        served_R, accepted_E = queues(a.expert_R[order_R], a.E)
        slot_R = jnp.zeros_like(served_R).at[order_R].set(served_R, unique_indices=True)
    kept_R = a.expert_R < a.E
    if capacity is not None:
        kept_R &= slot_R < capacity
        accepted_E = jnp.minimum(accepted_E, capacity)
    return Plan(
        assignments=a, slot_R=slot_R, kept_R=kept_R, accepted_E=accepted_E, capacity=capacity
    )


def plan_traffic(
    plan: Plan | SoftPlan,
    valid_T: Bool[Array, "T"],
    row_part_T: Int[Array, "T"] | None = None,
    offered: int | None = None,
) -> Traffic:
    """Counts of one group's plan; `overflow` is the dispatcher's to fill in. In a soft plan every
    slot is taken and nothing is wanted or dropped. A group of padding alone offers no slots.
    offered: experts among which the group chooses; None: all."""
    any_valid = jnp.any(valid_T)
    if isinstance(plan, SoftPlan):
        _, E, C = plan.dispatch_TEC.shape
        return dataclasses.replace(
            _no_traffic(E, K=1),
            accepted_E=jnp.where(any_valid, jnp.full((E,), C, jnp.int32), 0),
            slots=jnp.where(any_valid, jnp.int32(E * C), 0),
        )
    a = plan.assignments
    K = a.k or 1
    wanted_R = a.expert_R < a.E
    dropped_R = wanted_R & ~plan.kept_R
    # A token that a null expert serves is not counted as dropped.
    served_R = plan.kept_R | ((a.expert_R >= a.E) & (a.expert_R < a.unused))
    served_T = _per_token(a, served_R)
    lost_T = (_per_token(a, wanted_R) > 0) & (served_T == 0) & valid_T
    row_part_T = jnp.zeros((a.T,), jnp.int32) if row_part_T is None else row_part_T
    in_part_TN = one_hot(row_part_T, ROW_PARTS)

    def by_part(marked_R: Array) -> Array:
        return jnp.sum(jnp.where(in_part_TN, _per_token(a, marked_R)[:, None], 0), axis=0)

    def by_rank(marked_R: Array) -> Array:
        return jnp.sum(marked_R.reshape(-1, K), axis=0, dtype=jnp.int32)

    most = min(a.k or a.E, MAX_SERVED)
    return Traffic(
        accepted_E=plan.accepted_E,
        dropped=jnp.sum(dropped_R, dtype=jnp.int32),
        dropped_tokens=jnp.sum(lost_T, dtype=jnp.int32),
        overflow=jnp.zeros((), jnp.int32),
        slots=jnp.where(any_valid, jnp.int32((offered or a.E) * (plan.capacity or 0)), 0),
        wanted_K=by_rank(wanted_R),
        dropped_K=by_rank(dropped_R),
        wanted_N=by_part(wanted_R),
        dropped_N=by_part(dropped_R),
        served_H=count_experts(jnp.minimum(served_T, most), valid_T, most + 1),
    )


def _no_traffic(E: int, K: int) -> Traffic:
    def zeros(*shape: int) -> Array:
        return jnp.zeros(shape, jnp.int32)

    return Traffic(
        accepted_E=zeros(E),
        dropped=zeros(),
        dropped_tokens=zeros(),
        overflow=zeros(),
        slots=zeros(),
        wanted_K=zeros(K),
        dropped_K=zeros(K),
        wanted_N=zeros(ROW_PARTS),
        dropped_N=zeros(ROW_PARTS),
        served_H=zeros(1),
    )


def _per_token(a: Assignments, marked_R: Bool[Array, "R"]) -> Int[Array, "T"]:
    """How many of each token's rows are marked."""
    if a.k is not None:
        return jnp.sum(marked_R.reshape(a.T, a.k), axis=1, dtype=jnp.int32)
    return jnp.zeros((a.T,), jnp.int32).at[a.token_R].add(marked_R.astype(jnp.int32))


# The leaves of statistics that reduce by maximum; all others are sums.
PEAKS = frozenset({"largest_logit"})


def _is_peak(path: KeyPath) -> bool:
    return getattr(path[-1], "name", None) in PEAKS


def reduce_sums(tree: Tree, axis: int | tuple[int, ...] = 0) -> Tree:
    """Reduces statistics (Sums, Traffic) over leading axes; counts stay int32."""

    def reduce(path: KeyPath, leaf: Array) -> Array:
        if _is_peak(path):
            return jnp.max(leaf, axis=axis)
        return jnp.sum(leaf, axis=axis, dtype=leaf.dtype)

    return jax.tree_util.tree_map_with_path(reduce, tree)


def pool(sums_bP: Sums, names: tuple[str, ...]) -> Sums:
    """`own` sums of these names over all groups at hand, leaves (1, 1, ...); the others as they
    are, (b, P, ...)."""

    def whole(leaf: Array) -> Array:
        return jnp.sum(leaf, axis=(0, 1), keepdims=True, dtype=leaf.dtype)

    own = {n: whole(leaf) if n in names else leaf for n, leaf in sums_bP.own.items()}
    return dataclasses.replace(sums_bP, own=own)


def add_sums(first: Tree, second: Tree) -> Tree:
    """The statistics of two sets of tokens together, leaf by leaf; of numpy arrays numpy's."""

    def add(path: KeyPath, x: Any, y: Any) -> Any:
        if _is_peak(path):
            return np.maximum(x, y) if isinstance(x, np.ndarray) else jnp.maximum(x, y)
        return x + y

    return jax.tree_util.tree_map_with_path(add, first, second)


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
