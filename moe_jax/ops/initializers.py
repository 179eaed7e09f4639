"""How matrices are drawn."""

from __future__ import annotations

from collections.abc import Callable

import jax

Initializer = Callable[..., jax.Array]


def fan_in(
    scale: float,
    *,
    in_axis: int | tuple[int, ...] = -2,
    out_axis: int | tuple[int, ...] = -1,
    batch_axis: int | tuple[int, ...] = (),
) -> Initializer:
    """Truncated normal of variance scale / fan_in, the size along in_axis.

    Every axis must be named: one left out counts as a receptive field and multiplies the fan.
    Switch (2101.03961) section 2.4 takes scale = 0.1 instead of 1 for stable training.
    """
    return jax.nn.initializers.variance_scaling(
        scale, "fan_in", "truncated_normal", in_axis, out_axis, batch_axis
    )
