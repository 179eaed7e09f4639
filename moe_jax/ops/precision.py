"""The type that sums are kept in."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """float64 for float64, float32 for everything smaller."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits > 32 else jnp.float32)


def wide(x: Array) -> Array:
    """x in that type."""
    return x.astype(accumulator(x.dtype))
