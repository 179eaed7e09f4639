"""Expert parallelism without exchange: every device sees all tokens and adds what its experts give.

For few tokens or few devices along the axis: it moves every token to every device, whichever
experts it wants, but waits for no counts and has the same shapes under any load.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from moe_jax.dispatch.transport.local import local
from moe_jax.experts.types import Networks
from moe_jax.routing.types import Plan, SoftPlan


def gather(
    x_gTD: Float[Array, "g T D"],
    plan_g: Plan | SoftPlan,
    experts: Networks,
    *,
    layout: str,
    axis: str,
    receive_factor: float,
) -> tuple[Float[Array, "g T D"], Int[Array, "g"]]:
    """All-gather of tokens and plans, the local experts on what is theirs, reduce-scatter.

    Per device the all-gather sends (n - 1) * g * T * D elements, as does the reduce-scatter;
    backward the same. The plan adds 3 numbers a row and E counts a group. With a SoftPlan its maps
    travel by all-to-all instead.
    The rows layout has a buffer of min(n * M, ceil(receive_factor * M)) rows, M = g * R: exact
    while this device's experts want no more; further rows are lost. A receive_factor >= n is
    always exact. Partial sums of different devices are added in x's dtype.
    """
    n = jax.lax.axis_size(axis)
    x_GTD = checkpoint_name(jax.lax.all_gather(x_gTD, axis, tiled=True), "received")
    if isinstance(plan_g, SoftPlan):
        plan_G: Plan | SoftPlan = _own_soft_plan(plan_g, axis)
        limit = None
    else:
        plan_G = _own_plan(plan_g, axis)
        g, R = plan_g.kept_R.shape
        limit = min(n * g * R, math.ceil(receive_factor * g * R))
    y_GTD, lost_G = local(x_GTD, plan_G, experts, layout=layout, limit=limit)
    y_gTD = jax.lax.psum_scatter(y_GTD, axis, scatter_dimension=0, tiled=True)
    return y_gTD, jax.lax.psum_scatter(lost_G, axis, scatter_dimension=0, tiled=True)


def _own_plan(plan_g: Plan, axis: str) -> Plan:
    """The plans of all n * g groups, with this device's e = E / n experts as 0..e-1 and no rows of
    others."""
    n, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    plan_G: Plan = jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis, tiled=True), plan_g)
    a = plan_G.assignments
    e = a.E // n
    first = (me * e).astype(jnp.int32)
    expert_GR = a.expert_R - first
    own_GR = (expert_GR >= 0) & (expert_GR < e)
    own = dataclasses.replace(a, expert_R=jnp.where(own_GR, expert_GR, e), E=e, Z=0, c=None)
    return dataclasses.replace(
        plan_G,
        assignments=own,
        kept_R=plan_G.kept_R & own_GR,
        accepted_E=jax.lax.dynamic_slice_in_dim(plan_G.accepted_E, first, e, axis=1),
    )


def _own_soft_plan(plan_g: SoftPlan, axis: str) -> SoftPlan:
    """(g, T, E, C) -> (n * g, T, E / n, C): all groups' maps of this device's experts."""
    own: SoftPlan = jax.tree.map(
        lambda map_g: jax.lax.all_to_all(map_g, axis, 2, 0, tiled=True), plan_g
    )
    return own
