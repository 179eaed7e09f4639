"""No transport: all experts are on this device (or replicated on it)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.dispatch.rows import through_rows
from moe_jax.dispatch.slots import FILLS, through_slots
from moe_jax.experts.types import Networks
from moe_jax.routing.types import Plan, SoftPlan


def local(
    x_gTD: Float[Array, "g T D"],
    plan_g: Plan | SoftPlan,
    experts: Networks,
    *,
    layout: str,
    axis: str | None = None,
    receive_factor: float = 1.0,
    limit: int | None = None,
) -> tuple[Float[Array, "g T D"], Int[Array, "g"]]:
    """Every expert on its slots or rows of all groups at once. No bytes move. ValueError where the
    experts are spread over an axis.

    limit: length of the buffer of rows (None: all of them fit); further rows are lost.
    """
    if axis is not None:
        raise ValueError(f'transport "local" moves nothing, but experts are spread over {axis!r}')
    if layout in FILLS:
        y_gTD = through_slots(x_gTD, plan_g, layout, lambda x: _slots(x, experts))
        return y_gTD, jnp.zeros(x_gTD.shape[:1], jnp.int32)

    def rows(x_MD: Array, sizes_E: Array) -> tuple[Array, Array]:
        return experts.rows(x_MD, sizes_E), jnp.zeros(x_MD.shape[:1], bool)

    return through_rows(x_gTD, plan_g, rows, limit)


def _slots(x_gECD: Float[Array, "g E C D"], experts: Networks) -> Float[Array, "g E C D"]:
    g, E, C, D = x_gECD.shape
    x_END = x_gECD.transpose(1, 0, 2, 3).reshape(E, g * C, D)
    return experts.slots(x_END).reshape(E, g, C, D).transpose(1, 0, 2, 3)
