"""The feed-forward network that most sparse models have for an expert."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from jaxtyping import Array

from moe_jax.config.fields import Rule, one_of
from moe_jax.experts.base import BaseExpert, matrices, vectors
from moe_jax.experts.types import Networks, View
from moe_jax.ops.expert_ffn import ACTIVATIONS, GATED, ExpertWeights
from moe_jax.routing.types import ParamSpec


@dataclass(frozen=True, kw_only=True)
class FeedForward(BaseExpert):
    """Gated: (act(x W_gate) * (x W_up)) W_down; otherwise act(x W_up) W_down.

    activation: a key of ops.expert_ffn.ACTIVATIONS; None: the model's. bias: a vector is added
    behind each product, b_gate, b_up (E, F), b_down (E, D), zeros at first.
    w_gate, w_up (E, D, F), w_down (E, F, D). Without biases it runs as one fused operation.
    """

    activation: str | None = None
    bias: bool = False

    def check(self) -> Iterator[Rule]:
        if self.activation is not None:
            yield from one_of(self, ACTIVATIONS, "activation")

    def completed(self, activation: str) -> Self:
        return dataclasses.replace(self, activation=self.activation or activation)

    def params(self, E: int, D: int, F: int, init_scale: float) -> dict[str, ParamSpec]:
        names = ("gate", "up") if self._act in GATED else ("up",)
        found = {f"w_{name}": matrices((E, D, F), "DF", init_scale) for name in names}
        found["w_down"] = matrices((E, F, D), "FD", init_scale)
        if self.bias:
            found |= {f"b_{name}": vectors((E, F), "F") for name in names}
            found["b_down"] = vectors((E, D), "D")
        return found

    def apply(self, x: Array, view: View) -> Array:
        def product(name: str) -> Array:
            y = view.times(x, f"w_{name}")
            return (y + view.vector(f"b_{name}")).astype(x.dtype) if self.bias else y

        act = ACTIVATIONS[self._act]
        h = act(product("gate")) * product("up") if self._act in GATED else act(product("up"))
        y = view.times(h, "w_down")
        return y + view.once(view.vector("b_down")) if self.bias else y

    def networks(
        self, weights: Mapping[str, Array], backend: str, platform: str | None, tensor: str | None
    ) -> Networks:
        if self.bias:
            return super().networks(weights, backend, platform, tensor)
        return ExpertWeights(
            w_gate_EDF=weights.get("w_gate"),
            w_up_EDF=weights["w_up"],
            w_down_EFD=weights["w_down"],
            activation=self._act,
            backend=backend,
            platform=platform,
        )

    @property
    def _act(self) -> str:
        if self.activation is None:
            raise ValueError("an expert without an activation: completed(...) gives the model's")
        return self.activation
