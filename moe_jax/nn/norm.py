"""Root-mean-square layer norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from moe_jax.nn.param import parameter

EPSILON = 1e-5


def rms_norm(x: jax.Array, scale_N: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """y = x / sqrt(mean(x^2) + epsilon) * scale, in float32. Zhang, Sennrich (1910.07467)."""
    upcast = x.astype(jnp.float32)
    power = jnp.mean(jnp.square(upcast), axis=-1, keepdims=True)
    scale = scale_N.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (upcast * jax.lax.rsqrt(power + epsilon) * scale).astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_norm` with a scale that starts at 1."""

    def __init__(self, size: int, *, epsilon: float = EPSILON, rngs: nnx.Rngs):
        ones = jax.nn.initializers.ones
        self.scale = parameter(rngs, ones, (size,), ("norm",), matrix=None, decays=False)
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], self.epsilon)
