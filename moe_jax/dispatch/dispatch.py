"""`dispatch`: moves tokens to their experts by a layout and a transport, and combines."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.dispatch.dense import dense
from moe_jax.dispatch.slots import FILLS
from moe_jax.dispatch.transport import TRANSPORTS
from moe_jax.dispatch.transport.local import local
from moe_jax.experts.types import Networks
from moe_jax.routing.types import Plan, SoftPlan

LAYOUTS = {
    "rows": "sorted by expert, grouped matmul; dropless without waste",
    "slots_scatter": "E x C buffer filled by a scatter",
    "slots_einsum": "E x C buffer filled by a one-hot einsum (GShard)",
    "dense": "every expert on every token: the oracle, one device along `expert` only",
}

SOFT_LAYOUTS = ("slots_einsum", "dense")  # those that can carry a SoftPlan


def dispatch(
    x_gTD: Float[Array, "g T D"],
    plan_g: Plan | SoftPlan,
    experts: Networks,
    *,
    layout: str,
    transport: str = "local",
    axis: str | None = None,
    receive_factor: float = 2.0,
    chunks: int = 1,
) -> tuple[Float[Array, "g T D"], Int[Array, "g"]]:
    """y_t = sum over the kept rows r of token t of weight_r * expert_r(x_t), for g groups.

    Args:
      x_gTD: the tokens of this shard's groups. plan_g: their plans, leaves with a leading g.
      experts: all experts (axis None) or this device's E / n of them.
      layout: a name of LAYOUTS. transport: a name of TRANSPORTS.
      axis: the mesh axis that experts are spread over, inside a `shard_map`; None: local.
      receive_factor: receive buffer of the rows layout as a multiple of the even load.
      chunks: parts of the g groups (a divisor of g) that travel on their own, so that one part's
        communication can run beside the experts of another. Each has its own receive buffer.

    Returns y_gTD in x's dtype and, per group, the rows lost to a full receive buffer.
    """
    if layout == "dense":
        return dense(x_gTD, plan_g, experts), jnp.zeros(x_gTD.shape[:1], jnp.int32)
    if layout not in FILLS and layout != "rows":
        raise ValueError(f"no layout {layout!r}; there are {sorted(LAYOUTS)}")

    def carry(x_gTD: Array, plan_g: Plan | SoftPlan) -> tuple[Array, Array]:
        if axis is None:
            return local(x_gTD, plan_g, experts, layout=layout)
        return TRANSPORTS[transport](
            x_gTD, plan_g, experts, layout=layout, axis=axis, receive_factor=receive_factor
        )

    if chunks == 1:
        return carry(x_gTD, plan_g)
    g = x_gTD.shape[0]
    if g % chunks:
        raise ValueError(f"{g} groups of a shard are not divisible into {chunks} chunks")
    done = []
    for i in range(chunks):
        chunk = slice(i * (g // chunks), (i + 1) * (g // chunks))
        done.append(carry(*jax.tree.map(lambda leaf, chunk=chunk: leaf[chunk], (x_gTD, plan_g))))
    y, overflow = zip(*done, strict=True)
    return jnp.concatenate(y), jnp.concatenate(overflow)
