"""Cosine routing: tokens and experts compared by direction, in few dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule, at_least, one_of
from moe_jax.ops.precision import upcast
from moe_jax.routing.choice import add_bias, best, jitter, renormalize
from moe_jax.routing.scores import SCORES
from moe_jax.routing.token_choice.base import BaseLinearChoice
from moe_jax.routing.types import (
    LAST_TWO,
    Assignments,
    ParamSpec,
    RouterInputs,
    RouterParams,
    RouterState,
    Sums,
)

MIN_NORM = 1e-6


def unit(x: Float[Array, "N P"]) -> Float[Array, "N P"]:
    """Each row over its Euclidean norm; rows of zeros stay so, with a finite gradient."""
    square_N1 = jnp.sum(jnp.square(x), axis=1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square_N1, MIN_NORM**2))


@dataclass(frozen=True, kw_only=True)
class Cosine(BaseLinearChoice):
    """logit_e = cos(W x, v_e) / tau; the k largest scores, with the scores as weights.

    W (D, P) projects to `dim` dimensions, v (E, P) are the experts' directions, tau is trained from
    `temperature` on and kept above 0.01. `score`: "softmax" or "sigmoid".
    Chi et al. (2204.09179, X-MoE) section 3.2: k=1, dim = E / 2, tau starts at 0.3 with sigmoid and
    at 0.07 with softmax.
    """

    takes_mask = False

    k: int = 2
    dim: int = 16
    score: str = "softmax"
    temperature: float = 0.07
    renormalize: bool = False

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "dim")
        yield from one_of(self, SCORES, "score")
        if self.temperature < 0.01:
            yield "temperature", "must be at least 0.01"

    def params(self, D: int, E: int) -> dict[str, ParamSpec]:
        specs = super().params(D, E)
        normal = jax.nn.initializers.normal(1.0)
        # Replaces the matrix from tokens to logits.
        specs["kernel"] = ParamSpec(
            shape=(D, self.dim),
            init=specs["kernel"].init,
            axes=("router_embed", None),
            matrix=LAST_TWO,
            decays=True,
        )
        # The length of each row is divided out, so weight decay would have no effect.
        specs["directions"] = ParamSpec(
            shape=(E, self.dim),
            init=normal,
            axes=("router_expert", None),
            matrix=LAST_TWO,
            decays=False,
        )
        warm = jax.nn.initializers.constant(self.temperature)
        specs["temperature"] = ParamSpec(
            shape=(1,), init=warm, axes=(None,), matrix=None, decays=False
        )
        return specs

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        x_TD = jitter(upcast(inputs.x_TD), inputs, self.jitter)
        params = {name: upcast(array) for name, array in params.items()}
        highest = jax.lax.Precision.HIGHEST
        x_TP = jnp.einsum("TD,DP->TP", x_TD, params["kernel"], precision=highest)
        cosine_TE = jnp.einsum(
            "TP,EP->TE", unit(x_TP), unit(params["directions"]), precision=highest
        )
        scaled_TE = cosine_TE / jnp.maximum(params["temperature"], 0.01)[None, :]
        logits_TE = add_bias(scaled_TE, params)
        score_TE = SCORES[self.score](logits_TE)
        # Choose by the logit: sigmoids of large logits all round to 1.
        weight_TK, expert_TK = best(score_TE, self.k, logits_TE)
        if self.renormalize:
            weight_TK = renormalize(weight_TK)
        return self.decide(weight_TK, expert_TK, inputs, logits_TE, renormalize(score_TE))
