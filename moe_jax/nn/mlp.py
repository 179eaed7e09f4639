"""The dense feed-forward layer, and shared experts."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from moe_jax.nn.param import fan_in, parameter
from moe_jax.ops.expert_ffn import ACTIVATIONS, GATED
from moe_jax.ops.linear import linear
from moe_jax.routing.types import LAST_TWO


class MLP(nnx.Module):
    """Gated: (act(x W_gate) * (x W_up)) W_down; otherwise act(x W_up) W_down."""

    def __init__(
        self,
        *,
        model_dim: int,
        hidden_dim: int,
        activation: str,
        init_scale: float,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        D, F, init = model_dim, hidden_dim, fan_in(init_scale)
        gated = activation in GATED
        up_axes, down_axes = ("embed", "mlp"), ("mlp", "embed")
        weights = partial(parameter, rngs, init, dtype=param_dtype, matrix=LAST_TWO, decays=True)
        self.w_gate = weights((D, F), up_axes) if gated else None
        self.w_up = weights((D, F), up_axes)
        self.w_down = weights((F, D), down_axes)
        self.activation = activation

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        h_BSF = linear(x_BSD, self.w_up[...])
        if self.w_gate is not None:
            h_BSF = act(linear(x_BSD, self.w_gate[...])) * h_BSF
        else:
            h_BSF = act(h_BSF)
        return linear(h_BSF, self.w_down[...], True)
