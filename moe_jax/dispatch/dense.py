"""The oracle: every expert computes every token, then the plan's weights combine.

Exact for any plan and slow: tokens x experts arithmetic, no movement at all. Every other
dispatcher is tested against it, values and all gradients.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.experts.types import Networks
from moe_jax.routing.types import Plan, SoftPlan


def outputs(x_TD: Float[Array, "T D"], experts: Networks) -> Float[Array, "T E D"]:
    """Uncombined outputs of all experts on all tokens."""
    return experts.all(x_TD)


def dense(
    x_gTD: Float[Array, "g T D"], plan_g: Plan | SoftPlan, experts: Networks
) -> Float[Array, "g T D"]:
    """y_t = sum over kept rows r of token t of weight_r * expert_r(x_t)."""
    if isinstance(plan_g, SoftPlan):
        return jax.vmap(lambda x_TD, plan: _soft(x_TD, plan, experts))(x_gTD, plan_g)
    return jax.vmap(lambda x_TD, plan: _hard(x_TD, plan, experts))(x_gTD, plan_g)


def _hard(x_TD: Array, plan: Plan, experts: Networks) -> Array:
    a = plan.assignments
    weight_R = jnp.where(plan.kept_R, a.weight_R, 0)
    expert_R = jnp.where(plan.kept_R, a.expert_R, a.E)
    combine_TE = jnp.zeros((a.T, a.E), jnp.float32)
    combine_TE = combine_TE.at[a.token_R, expert_R].add(weight_R, mode="drop")
    y_TED = outputs(x_TD, experts).astype(jnp.float32)
    return jnp.einsum("TE,TED->TD", combine_TE, y_TED).astype(x_TD.dtype)


def _soft(x_TD: Array, plan: SoftPlan, experts: Networks) -> Array:
    x_ECD = jnp.einsum("TEC,TD->ECD", plan.dispatch_TEC, x_TD.astype(jnp.float32))
    y_ECD = experts.slots(x_ECD.astype(x_TD.dtype)).astype(jnp.float32)
    return jnp.einsum("TEC,ECD->TD", plan.combine_TEC, y_ECD).astype(x_TD.dtype)
