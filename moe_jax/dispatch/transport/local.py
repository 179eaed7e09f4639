"""No transport: all experts are on this device (or replicated on it)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.ops.expert_ffn import ExpertWeights


def slots(
    x_gECD: Float[Array, "g E C D"], experts: ExpertWeights, axis: str | None
) -> Float[Array, "g E C D"]:
    """Every expert on its slots of all groups at once. No bytes move."""
    g, E, C, D = x_gECD.shape
    x_END = x_gECD.transpose(1, 0, 2, 3).reshape(E, g * C, D)
    y_END = experts.slots(x_END)
    return y_END.reshape(E, g, C, D).transpose(1, 0, 2, 3)


def rows(
    x_MD: Float[Array, "M D"],
    sizes_E: Int[Array, "E"],
    experts: ExpertWeights,
    axis: str | None,
    receive_factor: float,
) -> tuple[Float[Array, "M D"], Bool[Array, "M"]]:
    """Every expert on its rows. No bytes move, nothing overflows."""
    return experts.rows(x_MD, sizes_E), jnp.zeros(x_MD.shape[:1], bool)
