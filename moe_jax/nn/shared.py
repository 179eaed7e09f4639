"""Experts that see every token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from jaxtyping import Array, Float

from moe_jax.nn.around import BaseAround, Params
from moe_jax.nn.cost import Division, Here, Planned
from moe_jax.nn.mlp import feed_forward, feed_forward_params, feed_forward_planned
from moe_jax.routing.types import ParamSpec


@dataclass(frozen=True, kw_only=True)
class Shared(BaseAround):
    """`number` feed-forward experts of hidden width `hidden` that see every token and have no
    weight: one MLP, number * hidden wide. DeepSeekMoE (2401.06066) section 3.2."""

    number: int
    hidden: int
    own_width: bool  # whether `hidden` is set for itself, and not that of the routed experts
    activation: str = ""  # "": the model's

    def completed(self, activation: str) -> Shared:
        return replace(self, activation=self.activation or activation)

    def params(self, D: int, init_scale: float) -> dict[str, ParamSpec]:
        return feed_forward_params(D, self.number * self.hidden, self.activation, init_scale)

    def beside(self, params: Params, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return feed_forward(params, x, self.activation)

    def planned(self, D: int, here: Here) -> Planned:
        return feed_forward_planned(D, self.number * self.hidden, self.activation, here)

    def divisions(self, sizes: Mapping[str, int]) -> Iterator[Division]:
        if self.own_width:
            parts = sizes["tensor"] // math.gcd(self.number, sizes["tensor"])
            by = "mesh.tensor / gcd(mesh.tensor, moe.num_shared)"
            yield "moe.shared_dim", self.hidden, parts, by
