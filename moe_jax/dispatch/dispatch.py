"""`dispatch`: moves tokens to their experts by a layout and a transport, and combines."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.dispatch.dense import dense
from moe_jax.dispatch.rows import from_rows, sort_rows, to_rows
from moe_jax.dispatch.slots import FILLS
from moe_jax.dispatch.transport import TRANSPORTS
from moe_jax.ops.expert_ffn import ExpertWeights
from moe_jax.routing.types import Plan, SoftPlan

LAYOUTS = {
    "rows": "sorted by expert, grouped matmul; dropless without waste",
    "slots_scatter": "E x C buffer filled by a scatter",
    "slots_einsum": "E x C buffer filled by a one-hot einsum (GShard)",
    "dense": "every expert on every token: the oracle, one device along `expert` only",
}


def dispatch(
    x_gTD: Float[Array, "g T D"],
    plan_g: Plan | SoftPlan,
    experts: ExpertWeights,
    *,
    layout: str,
    transport: str = "local",
    axis: str | None = None,
    receive_factor: float = 2.0,
) -> tuple[Float[Array, "g T D"], Int[Array, "g"]]:
    """y_t = sum over the kept rows r of token t of weight_r * expert_r(x_t), for g groups.

    Args:
      x_gTD: the tokens of this shard's groups. plan_g: their plans, leaves with a leading g.
      experts: the weights of all experts (axis None) or of this device's E / n of them.
      layout: a name of LAYOUTS. transport: a name of TRANSPORTS.
      axis: the mesh axis that experts are spread over, inside a `shard_map`; None: local.
      receive_factor: receive buffer of the rows layout as a multiple of the even load.

    Returns y_gTD in x's dtype and, per group, the rows lost to a full receive buffer.
    """
    overflow_g = jnp.zeros(x_gTD.shape[:1], jnp.int32)
    if layout == "dense":
        return dense(x_gTD, plan_g, experts), overflow_g
    carrier = TRANSPORTS["local" if axis is None else transport]
    if layout in FILLS:
        fill, drain = FILLS[layout]
        x_gECD = jax.vmap(fill)(x_gTD, plan_g)
        y_gECD = carrier.slots(x_gECD, experts, axis)
        return jax.vmap(drain)(y_gECD, plan_g), overflow_g
    if isinstance(plan_g, SoftPlan):
        raise ValueError('a SoftPlan mixes tokens into slots: layout "slots_einsum" only')
    order = sort_rows(plan_g)
    x_MD = to_rows(x_gTD, plan_g, order)
    y_MD, lost_M = carrier.rows(x_MD, order.sizes_E, experts, axis, receive_factor)
    lost_gR = lost_M.at[order.place_gR].get(mode="fill", fill_value=False)
    overflow_g = jnp.sum(lost_gR, axis=1, dtype=jnp.int32)
    return from_rows(y_MD, plan_g, order), overflow_g
