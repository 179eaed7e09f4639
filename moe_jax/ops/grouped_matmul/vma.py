"""Axes along which a value differs between devices, inside a `shard_map` that checks them.

The carry of a loop must vary over the same mesh axes before and after a turn.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def _axes(x: Array) -> frozenset[str]:
    return frozenset(jax.typeof(x).manual_axis_type.varying)


def _vary(x: Array, axes: frozenset[str]) -> Array:
    missing = tuple(axes - _axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def filled(shape: tuple[int, ...], value: int, dtype: jnp.dtype, *, like: Array) -> Array:
    """An array of one value that varies over the mesh axes that `like` varies over."""
    return _vary(jnp.full(shape, value, dtype), _axes(like))


def same_axes(*trees: PyTree) -> tuple[PyTree, ...]:
    """All arrays varying over the mesh axes of any of them.

    Done before an op with custom gradients, so that the gradient of an array that varies over
    fewer axes is summed over the others.
    """
    axes = frozenset().union(*map(_axes, jax.tree.leaves(trees)))
    return jax.tree.map(lambda x: _vary(x, axes), trees)
