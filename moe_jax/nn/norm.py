"""Root-mean-square layer norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from moe_jax.nn.param import parameter


class RMSNorm(nnx.Module):
    """y = x / sqrt(mean(x^2) + epsilon) * scale, in float32. Zhang, Sennrich (1910.07467)."""

    def __init__(self, size: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
        ones = jax.nn.initializers.ones
        self.scale = parameter(rngs, ones, (size,), ("norm",), matrix=None, decays=False)
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        scale = self.scale[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return (wide * jax.lax.rsqrt(power + self.epsilon) * scale).astype(x.dtype)
