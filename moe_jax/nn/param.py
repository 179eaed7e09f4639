"""Parameters with logical axis names, and initialisers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = Callable[..., jax.Array]


def parameter(
    rngs: nnx.Rngs,
    init: Initializer,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype: Any = jnp.float32,
) -> nnx.Param:
    """A Param whose metadata `axes` names each dimension for `parallel.rules`."""
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} and axes {axes} differ in length")
    return nnx.Param(init(rngs.params(), shape, dtype), axes=axes)


def fan_in(
    scale: float,
    *,
    in_axis: int | tuple[int, ...] = -2,
    out_axis: int | tuple[int, ...] = -1,
    batch_axis: Any = (),
) -> Initializer:
    """Truncated normal of variance scale / fan_in, the size along in_axis.

    Every axis must be named: one left out counts as a receptive field and multiplies the fan.
    Switch (2101.03961) section 2.4 takes scale = 0.1 instead of 1 for stable training.
    """
    return jax.nn.initializers.variance_scaling(
        scale, "fan_in", "truncated_normal", in_axis, out_axis, batch_axis
    )


def axes_of(state: nnx.State) -> dict[str, Any]:
    """The logical axes of every parameter of a state, as nested plain dicts.

    A parameter with one more dimension than names is stacked over layers: "layers" leads.
    """

    def axes(variable: nnx.Variable) -> tuple[str | None, ...]:
        names = tuple(variable.get_metadata("axes"))
        stacked = len(variable.get_value().shape) - len(names)
        return ("layers",) * stacked + names

    flat = {path: axes(variable) for path, variable in nnx.to_flat_state(state)}
    return nnx.traversals.unflatten_mapping(flat)
