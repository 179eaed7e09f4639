"""Soft MoE: every slot is a mixture of all tokens, every token a mixture of all slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule, at_least
from moe_jax.ops.initializers import fan_in
from moe_jax.ops.precision import upcast
from moe_jax.routing.base import BaseRouter
from moe_jax.routing.plan import one_hot
from moe_jax.routing.types import (
    ParamSpec,
    RouterInputs,
    RouterParams,
    RouterState,
    SoftPlan,
    Sums,
)

EPSILON = 1e-6  # added to the square of a norm, as in V-MoE's code


def normalise(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """x / sqrt(|x|^2 + EPSILON) along an axis."""
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return x * jax.lax.rsqrt(square + EPSILON)


@dataclass(frozen=True, kw_only=True)
class SoftMoE(BaseRouter):
    """logits[t, e, c] = normalise(x_t) . scale normalise(phi_ec);
    dispatch = softmax over tokens, combine = softmax over all E * C slots.

    Slot c of expert e gets sum_t dispatch[t, e, c] x_t; token t gets the sum over slots of
    combine[t, e, c] times what the expert made of it. Puigcerver et al. (2308.00951) eq. 1-3;
    `normalize` is section 2.3 (vectors of length 1 and a trained scale, which starts at 1);
    without it logits = x phi. phi is (D, E, C). No token is dropped, no expert unbalanced, nothing
    is discrete; every token sees every other of its group: not causal. Padding tokens are in no
    slot and get nothing. Cost: 2 T E C D for each of logits, dispatch and combine.

    Only some layouts carry mixtures (dispatch.SOFT_LAYOUTS). Sums: every expert's wanted_E is its C
    slots, 0 in a group without valid tokens; prob_E and importance_E are what a token takes from
    the slots of e, summed over tokens; first_E counts the expert of which it takes most. So the
    load metrics say "balanced", as they must, and router_entropy how widely a token combines.
    """

    slots_per_expert: int = 1
    normalize: bool = True

    own_capacity = True
    soft = True

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "slots_per_expert")

    @property
    def causal_choice(self) -> bool:
        return False

    def choices(self, E: int) -> int:
        return E

    def experts_per_token(self, E: int, T: int) -> float:
        return E * self.slots_per_expert / T

    def params(self, D: int, E: int) -> dict[str, ParamSpec]:
        init = fan_in(1.0, in_axis=0, out_axis=(1, 2))
        shape = (D, E, self.slots_per_expert)
        phi = ParamSpec(
            shape=shape,
            init=init,
            axes=("embed", None, None),
            matrix=((0,), (1, 2)),
            decays=True,
        )
        specs = {"phi": phi}
        if self.normalize:
            one = jax.nn.initializers.ones
            specs["scale"] = ParamSpec(
                shape=(1,), init=one, axes=(None,), matrix=None, decays=False
            )
        return specs

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[SoftPlan, Sums]:
        logits_TEC = self._logits(params, inputs)
        valid_T11 = inputs.valid_T[:, None, None]
        any_valid = jnp.any(inputs.valid_T)
        # With no valid token all columns are equal instead of NaN, and are set to 0 below.
        masked_TEC = jnp.where(valid_T11, logits_TEC, jnp.finfo(jnp.float32).min / 2)
        dispatch_TEC = jnp.where(valid_T11, jax.nn.softmax(masked_TEC, axis=0), 0)
        combine_TEC = jnp.where(valid_T11, jax.nn.softmax(logits_TEC, axis=(1, 2)), 0)
        plan = SoftPlan(dispatch_TEC=dispatch_TEC, combine_TEC=combine_TEC)
        return plan, self._sums(logits_TEC, combine_TEC, inputs.valid_T, any_valid)

    def _logits(self, params: RouterParams, inputs: RouterInputs) -> Float[Array, "T E C"]:
        x_TD = upcast(inputs.x_TD)
        phi_DEC = upcast(params["phi"])
        if self.normalize:
            scale = upcast(params["scale"])
            x_TD, phi_DEC = normalise(x_TD, 1), normalise(phi_DEC, 0) * scale[:, None, None]
        return jnp.einsum("TD,DEC->TEC", x_TD, phi_DEC, precision=jax.lax.Precision.HIGHEST)

    def _sums(
        self, logits_TEC: Array, combine_TEC: Array, valid_T: Array, any_valid: Array
    ) -> Sums:
        _, E, C = logits_TEC.shape
        prob_TE = jnp.sum(combine_TEC, axis=2)
        log_prob_TE = jnp.log(jnp.maximum(prob_TE, jnp.finfo(jnp.float32).tiny))
        lse_T = jax.nn.logsumexp(logits_TEC, axis=(1, 2))
        size_TEC = jnp.abs(jax.lax.stop_gradient(logits_TEC))
        largest_T = jnp.argmax(prob_TE, axis=1).astype(jnp.int32)
        first_TE = one_hot(largest_T, E) & valid_T[:, None]
        prob_E = jnp.sum(prob_TE, axis=0)
        return Sums(
            wanted_E=jnp.where(any_valid, jnp.full((E,), C, jnp.int32), 0),
            first_E=jnp.sum(first_TE, axis=0, dtype=jnp.int32),
            prob_E=prob_E,
            importance_E=prob_E,
            load_E=jnp.zeros((E,), jnp.float32),
            z=jnp.sum(jnp.where(valid_T, jnp.square(lse_T), 0)),
            entropy=-jnp.sum(prob_TE * log_prob_TE),
            valid=jnp.sum(valid_T, dtype=jnp.int32),
            largest_logit=jnp.max(jnp.where(valid_T[:, None, None], size_TEC, 0), initial=0.0),
        )
