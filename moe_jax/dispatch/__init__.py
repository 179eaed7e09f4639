"""How tokens travel to their experts and back: a layout (what the buffer looks like) times a
transport (how it crosses devices). `dense` is the oracle for all of them."""

from moe_jax.dispatch.dispatch import LAYOUTS, SOFT_LAYOUTS, dispatch
from moe_jax.dispatch.sharded import gathered_weights, sharded_dispatch
from moe_jax.dispatch.transport import TRANSPORTS

__all__ = [
    "LAYOUTS",
    "SOFT_LAYOUTS",
    "TRANSPORTS",
    "dispatch",
    "gathered_weights",
    "sharded_dispatch",
]
