"""The type that sums are kept in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """float64 for float64, float32 for everything smaller."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits > 32 else jnp.float32)


def upcast(x: Array) -> Array:
    """x in that type."""
    return x.astype(accumulator(x.dtype))


def dot_upcast(a: Array, b: Array, dimensions: jax.lax.DotDimensionNumbers) -> Array:
    """`jax.lax.dot_general` with sums and result in the accumulator's type.

    XLA's CPU backend lacks such products of bfloat16 for results that it would rather write
    transposed ("Unsupported element type for DotThunk"): there the factors are widened first.
    """
    dtype = accumulator(a.dtype)

    def product(a: Array, b: Array) -> Array:
        return jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype)

    if a.dtype == b.dtype == dtype:
        return product(a, b)
    return jax.lax.platform_dependent(
        a, b, cpu=lambda a, b: product(a.astype(dtype), b.astype(dtype)), default=product
    )
