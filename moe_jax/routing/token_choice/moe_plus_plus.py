"""MoE++: zero, copy and constant experts, undispatched, beside the matrix experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule, at_least
from moe_jax.ops.initializers import fan_in
from moe_jax.ops.precision import upcast
from moe_jax.routing.choice import (
    admissible,
    best,
    choose,
    make_sums,
    renormalize,
    router_logits,
    scatter_gates,
    softmax,
)
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


@dataclass(frozen=True, kw_only=True)
class MoEPlusPlus(BaseLinearChoice):
    """q = softmax over the logits of E matrix and Z cheap experts; the k largest, weights q.

    Ids E .. E+Z-1, Z = zero + copy + constant, in this order:
      zero      0
      copy      x
      constant  a1 x + a2 v with [a1, a2] = softmax(x W_c); v and W_c are each expert's own.
    They take no capacity, send nothing and have no matrices. Ties go to the lower id, so matrix
    experts win. `kernel` and `bias` are E+Z wide, the matrix experts first.
    renormalize: weights over the sum of the k, in which zero experts count nothing (their weight is
      0): what the published model does, and AdaMoE (zero = n, copy = constant = 0).

    Loss (`balance`): sum_i eta_i f_i P_i over all E+Z, f_i the share of tokens that chose i, P_i
    the mean of q_i, eta 1 for matrix and `tau` for cheap experts, times `balance_coefficient` (and
    moe.losses.router.coefficient, 1). It pulls q away from where eta f is largest and rests where
    eta_i f_i is the same for all i: f of a matrix expert is tau times that of a cheap one. The f
    sum to k, so a token has on average k tau E / (tau E + Z) matrix experts: `experts_per_token`,
    from which capacities and FLOPs follow.

    Sums: prob_E is q given that the expert is a matrix expert, the softmax of the E logits, so that
    it sums to 1 also where all choices are undispatched; counts, gates and the other losses are of
    matrix experts; z, entropy and the largest logit of all E+Z. Metric `undispatched_fraction`: of
    all choices, those of cheap experts.

    Jin et al. (2410.07348) eq. 1-5 and 7-8: 1 zero, 1 copy, 2 constant experts, k = 2, tau = 0.75,
    coefficient 0.01. We differ: no gating residuals (eq. 6: they need the logits of the layer
    below), and cheap experts have no capacity of their own (eq. 8).
    Cost: O(T Z D) for the undispatched, for all tokens.
    """

    takes_mask = False

    k: int = 2
    zero: int = 1
    copy: int = 1
    constant: int = 2
    tau: float = 0.75
    renormalize: bool = False
    balance_coefficient: float = 0.01

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 0, "zero", "copy", "constant", "balance_coefficient")
        if self.tau <= 0:
            yield "tau", "must be above 0"

    @property
    def Z(self) -> int:
        """How many experts are undispatched."""
        return self.zero + self.copy + self.constant

    def experts_per_token(self, E: int, T: int) -> float:
        return min(self.k * self.tau * E / (self.tau * E + self.Z), float(E))

    def params(self, D: int, E: int) -> dict[str, ParamSpec]:
        specs = super().params(D, E + self.Z)
        if self.constant:
            axes = ("router_expert", "router_embed")
            mix = fan_in(1.0, in_axis=1, out_axis=2, batch_axis=0)
            normal = jax.nn.initializers.normal(1.0)
            specs["mix"] = ParamSpec(
                shape=(self.constant, D, 2),
                init=mix,
                axes=(*axes, None),
                matrix=LAST_TWO,
                decays=True,
            )
            # Each constant is itself an output: weight decay would pull it towards the zero expert.
            specs["constant"] = ParamSpec(
                shape=(self.constant, D), init=normal, axes=axes, matrix=None, decays=False
            )
        return specs

    def own_sums(self, E: int) -> dict[str, Array]:
        zeros_N = jnp.zeros((E + self.Z,), jnp.float32)
        return {"wanted_N": zeros_N, "prob_N": zeros_N}

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TN = router_logits(params, inputs, self.jitter)
        prob_TN, N = softmax(logits_TN), logits_TN.shape[1]
        E = N - self.Z
        weight_TK, expert_TK = best(prob_TN, self.k, admissible(prob_TN, logits_TN))
        if self.renormalize:
            is_zero_TK = (expert_TK >= E) & (expert_TK < E + self.zero)
            weight_TK = renormalize(jnp.where(is_zero_TK, 0, weight_TK))
        gate_TN = scatter_gates(weight_TK, expert_TK, N)
        # Capacity is computed as if all N experts had matrices.
        alike = choose(weight_TK, expert_TK, inputs, N, self.drop_order)
        every = make_sums(alike, logits_TN, prob_TN, gate_TN, inputs.valid_T)
        own = {}
        if inputs.train:
            own = {"wanted_N": every.wanted_E.astype(jnp.float32), "prob_N": every.prob_E}
        logits_TE = logits_TN[:, :E]
        assignments, sums = self.decide(
            weight_TK, expert_TK, inputs, logits_TE, softmax(logits_TE), own=own, Z=self.Z
        )
        return assignments, dataclasses.replace(
            sums, z=every.z, entropy=every.entropy, largest_logit=every.largest_logit
        )

    def undispatched(
        self, params: RouterParams, inputs: RouterInputs, assignments: Assignments
    ) -> Float[Array, "T D"]:
        a = assignments
        home_R = jnp.where((a.expert_R >= a.E) & (a.expert_R < a.unused), a.expert_R - a.E, a.Z)
        weight_TZ = jnp.zeros((a.T, a.Z), jnp.float32)
        weight_TZ = weight_TZ.at[a.token_R, home_R].add(a.weight_R, mode="drop")
        # Padding may hold inf, and 0 times inf is NaN.
        x_TD = jnp.where(inputs.valid_T[:, None], upcast(inputs.x_TD), 0)
        copied_T = jnp.sum(weight_TZ[:, self.zero : self.zero + self.copy], axis=1)
        if not self.constant:
            return copied_T[:, None] * x_TD
        weight_TJ = weight_TZ[:, self.zero + self.copy :]
        params = {name: upcast(params[name]) for name in ("mix", "constant")}
        highest = jax.lax.Precision.HIGHEST
        logits_TJA = jnp.einsum("TD,JDA->TJA", x_TD, params["mix"], precision=highest)
        alpha_TJA = weight_TJ[:, :, None] * jax.nn.softmax(logits_TJA, axis=2)
        x_share_T = copied_T + jnp.sum(alpha_TJA[:, :, 0], axis=1)
        v_TD = jnp.einsum("TJ,JD->TD", alpha_TJA[:, :, 1], params["constant"], precision=highest)
        return x_share_T[:, None] * x_TD + v_TD

    def losses(self, sums: Sums) -> dict[str, Float[Array, ""]]:
        if self.balance_coefficient == 0 or "wanted_N" not in sums.own:
            return {}
        tokens = jnp.maximum(sums.valid, 1).astype(jnp.float32)
        E = sums.wanted_E.shape[-1]
        eta_N = jnp.where(jnp.arange(E + self.Z) < E, 1.0, self.tau).astype(jnp.float32)
        f_N = jax.lax.stop_gradient(sums.own["wanted_N"]) / tokens
        balance = jnp.sum(eta_N * f_N * sums.own["prob_N"]) / tokens
        return {"balance": self.balance_coefficient * balance}

    def metrics(self, state: RouterState, sums: Sums) -> dict[str, Float[Array, ""]]:
        # Every valid token has k choices where no logit is -inf.
        all_choices = jnp.maximum(sums.valid * self.k, 1).astype(jnp.float32)
        undispatched = sums.valid * self.k - jnp.sum(sums.wanted_E)
        return {"undispatched_fraction": undispatched.astype(jnp.float32) / all_choices}
