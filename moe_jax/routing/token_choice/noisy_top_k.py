"""Noisy top-k gating of Shazeer et al. 2017, with learned or fixed noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule, at_least, one_of, schedulable
from moe_jax.routing.choice import (
    kernel_spec,
    router_logits,
    router_product,
    scatter_gates,
    softmax,
    top,
)
from moe_jax.routing.token_choice.base import BaseLinearChoice
from moe_jax.routing.types import (
    Assignments,
    ParamSpec,
    RouterInputs,
    RouterParams,
    RouterState,
    Sums,
)

NOISES = ("learned", "fixed")


def probability_of_choice(
    clean_TE: Float[Array, "T E"],
    noisy_TE: Float[Array, "T E"],
    std_TE: Float[Array, "T E"],
    k: int,
) -> Float[Array, "T E"]:
    """P(x, i) = Phi((clean_i - kth_excluding(noisy, k, i)) / std_i): the probability that expert
    i is among the k best if only its own noise is drawn again. 1701.06538 eq. 8-9.

    kth_excluding(v, k, i) is the k-th largest component of v without component i.
    """
    E = clean_TE.shape[1]
    if k >= E:
        return jnp.ones_like(clean_TE)
    best_TK = jax.lax.top_k(noisy_TE, k + 1)[0]
    kth_T1, next_T1 = best_TK[:, k - 1 : k], best_TK[:, k : k + 1]
    threshold_TE = jnp.where(noisy_TE >= kth_T1, next_T1, kth_T1)
    # An inadmissible expert is never chosen; without k others the last admissible one always is.
    gap_TE = jnp.where(clean_TE > -jnp.inf, clean_TE, 0) - jnp.maximum(threshold_TE, -1e30)
    chance_TE = jax.scipy.stats.norm.cdf(gap_TE / std_TE)
    return jnp.where(clean_TE > -jnp.inf, chance_TE, 0)


@dataclass(frozen=True, kw_only=True)
class NoisyTopK(BaseLinearChoice):
    """H = x W + N(0, 1) * std; keep the k largest of H; weights = softmax over those k.

    std = softplus(x W_noise), learned (Shazeer et al. (1701.06538) eq. 3-5), or fixed,
    noise_std / E (the noise of V-MoE, 2106.05974 section A). Noise in training only.
    Sums.importance_E is the sum of the sparse gates (eq. 6), Sums.load_E the smooth estimate
    (eq. 8-10); in evaluation load_E counts assignments. Both kernels start from zeros, as in the
    paper's appendix A, so that the load starts balanced; init_scale > 0 changes the first.
    The paper weighs both losses with 0.1.
    """

    k: int = 4
    noise: str = "learned"
    noise_std: float = schedulable(1.0)
    init_scale: float = 0.0

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from one_of(self, NOISES, "noise")
        yield from at_least(self, 0, "noise_std")

    def warn(self) -> Iterator[str]:
        if self.k == 1:
            yield (
                "moe.router.k = 1 with kind noisy_top_k: a softmax over one logit is the constant "
                "1, so the router gets no gradient from the task (the paper uses k > 1)"
            )

    def params(self, D: int, E: int) -> dict[str, ParamSpec]:
        specs = super().params(D, E)
        if self.noise == "learned":
            specs["noise_kernel"] = kernel_spec(D, E, 0.0)
        return specs

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        clean_TE = router_logits(params, inputs, self.jitter)
        E = clean_TE.shape[1]
        logits_TE, load_TE = clean_TE, None
        if inputs.train and inputs.key is not None:
            std_TE = self._std(params, inputs, clean_TE)
            key = jax.random.fold_in(inputs.key, 1)
            logits_TE = clean_TE + std_TE * jax.random.normal(key, clean_TE.shape)
            load_TE = probability_of_choice(clean_TE, logits_TE, std_TE, self.k)
        best_TK, expert_TK = top(logits_TE, self.k)
        weight_TK = softmax(best_TK)
        if load_TE is None:
            load_TE = scatter_gates(jnp.ones_like(weight_TK), expert_TK, E)
        prob_TE = softmax(clean_TE)
        return self.decide(weight_TK, expert_TK, inputs, clean_TE, prob_TE, load_TE=load_TE)

    def _std(
        self, params: RouterParams, inputs: RouterInputs, clean_TE: Array
    ) -> Float[Array, "T E"]:
        if self.noise == "learned":
            raw_TE = router_product(inputs.x_TD, params["noise_kernel"])
            # Keeps Phi's argument finite where the learned noise vanishes.
            return jax.nn.softplus(raw_TE) + 1e-2
        std = jnp.asarray(self.noise_std, jnp.float32) / clean_TE.shape[1]
        return jnp.broadcast_to(jnp.maximum(std, 1e-6), clean_TE.shape)
