"""The expert of gpt-oss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from moe_jax.config.fields import Rule
from moe_jax.experts.base import BaseExpert, matrices, vectors
from moe_jax.experts.types import View
from moe_jax.routing.types import ParamSpec


@dataclass(frozen=True, kw_only=True)
class ClampedSwiGLU(BaseExpert):
    """((u + 1) * g sigmoid(alpha g)) W_down + b_down with g = min(x W_gate + b_gate, limit) and
    u = clip(x W_up + b_up, -limit, limit).

    gpt-oss (2508.10925); alpha and limit as in its published code. Its clamps keep a few large
    activations within bfloat16; the biases start at zero.
    """

    alpha: float = 1.702
    limit: float = 7.0

    def check(self) -> Iterator[Rule]:
        if self.limit <= 0:
            yield "limit", "must be above 0"

    def params(self, E: int, D: int, F: int, init_scale: float) -> dict[str, ParamSpec]:
        return {
            "w_gate": matrices((E, D, F), "DF", init_scale),
            "w_up": matrices((E, D, F), "DF", init_scale),
            "w_down": matrices((E, F, D), "FD", init_scale),
            "b_gate": vectors((E, F), "F"),
            "b_up": vectors((E, F), "F"),
            "b_down": vectors((E, D), "D"),
        }

    def apply(self, x: Array, view: View) -> Array:
        g = jnp.minimum(view.times(x, "w_gate") + view.vector("b_gate"), self.limit)
        u = view.times(x, "w_up") + view.vector("b_up")
        u = jnp.clip(u, -self.limit, self.limit)
        h = ((u + 1) * g * jax.nn.sigmoid(self.alpha * g)).astype(x.dtype)
        return view.times(h, "w_down") + view.once(view.vector("b_down"))
