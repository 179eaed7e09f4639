"""Experts that work in a narrower, latent width."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jaxtyping import Array, Float

from moe_jax.nn.around import BaseAround, Params
from moe_jax.nn.cost import Division, Here, Planned
from moe_jax.ops.initializers import fan_in
from moe_jax.ops.linear import linear
from moe_jax.routing.types import LAST_TWO, ParamSpec


@dataclass(frozen=True, kw_only=True)
class Latent(BaseAround):
    """Two projections: down (D, L) before dispatch, up (L, D) behind the weighted sum. Neither has
    a bias, a norm or an activation, as in Nemotron 3. Tokens travel L wide.

    LatentMoE, Elango et al. (2601.18089). Kimi K3 has an RMS norm before `up`: around =
    output_norm.
    """

    latent_dim: int

    def width(self, D: int) -> int:
        return self.latent_dim

    def params(self, D: int, init_scale: float) -> dict[str, ParamSpec]:
        def matrix(shape: tuple[int, int], axes: tuple[str, str]) -> ParamSpec:
            init = fan_in(init_scale)
            return ParamSpec(shape=shape, init=init, axes=axes, matrix=LAST_TWO, decays=True)

        L = self.latent_dim
        return {
            "down": matrix((D, L), ("embed", "latent")),
            "up": matrix((L, D), ("latent", "embed")),
        }

    def inward(self, params: Params, x: Float[Array, "B S D"]) -> Float[Array, "B S L"]:
        return linear(x, params["down"])

    def outward(self, params: Params, y: Float[Array, "B S L"]) -> Float[Array, "B S D"]:
        return linear(y, params["up"])

    def planned(self, D: int, here: Here) -> Planned:
        """Over tensor the input of dispatch is gathered, and the weights thrice (XLA's choice)."""
        numbers = here.forward * here.tokens + (here.forward + 2) * D
        return Planned(
            kept=2 * here.tokens * self.latent_dim * here.bytes,
            gathered=numbers * self.latent_dim * here.bytes,
        )

    def divisions(self, sizes: Mapping[str, int]) -> Iterator[Division]:
        # The projections are split over `tensor`; the experts' width L is split over `fsdp`.
        parts = math.lcm(sizes["fsdp"], sizes["tensor"])
        yield "moe.latent_dim", self.latent_dim, parts, "lcm(mesh.fsdp, mesh.tensor)"
