"""The dense feed-forward layer, which shared experts are too."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from moe_jax.nn.cost import Here, Planned
from moe_jax.nn.param import Parameters
from moe_jax.ops.expert_ffn import ACTIVATIONS, GATED
from moe_jax.ops.initializers import fan_in
from moe_jax.ops.linear import linear
from moe_jax.routing.types import LAST_TWO, ParamSpec


def feed_forward_params(D: int, F: int, activation: str, init_scale: float) -> dict[str, ParamSpec]:
    """w_gate (for gated activations), w_up (D, F), w_down (F, D)."""

    def matrix(shape: tuple[int, int], axes: tuple[str, str]) -> ParamSpec:
        return ParamSpec(
            shape=shape, init=fan_in(init_scale), axes=axes, matrix=LAST_TWO, decays=True
        )

    inward = ("w_gate", "w_up") if activation in GATED else ("w_up",)
    return {
        **{name: matrix((D, F), ("embed", "mlp")) for name in inward},
        "w_down": matrix((F, D), ("mlp", "embed")),
    }


def feed_forward(
    params: Mapping[str, Array], x_BSD: Float[Array, "B S D"], activation: str
) -> Float[Array, "B S D"]:
    """Gated: (act(x W_gate) * (x W_up)) W_down; otherwise act(x W_up) W_down."""
    act = ACTIVATIONS[activation]
    h_BSF = linear(x_BSD, params["w_up"])
    if activation in GATED:
        h_BSF = act(linear(x_BSD, params["w_gate"])) * h_BSF
    else:
        h_BSF = act(h_BSF)
    return linear(h_BSF, params["w_down"], True)


def feed_forward_planned(D: int, F: int, activation: str, here: Here) -> Planned:
    """Its hidden activations, before and behind the activation; over tensor its outputs are summed,
    and backward the gradients of its input, one for each matrix that takes it."""
    inward = 2 if activation in GATED else 1
    hidden = inward * F * here.tokens / here.tensor * here.bytes
    summed = (here.forward + inward) * here.tokens * D * here.bytes
    return Planned(kept=2 * hidden, products=hidden, summed=summed)


class MLP(Parameters):
    """`feed_forward` as a module."""

    def __init__(
        self,
        *,
        model_dim: int,
        hidden_dim: int,
        activation: str,
        init_scale: float,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike = jnp.float32,
    ):
        params = feed_forward_params(model_dim, hidden_dim, activation, init_scale)
        super().__init__(params, rngs, param_dtype)
        self.activation = activation

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return feed_forward(self.arrays(), x_BSD, self.activation)
