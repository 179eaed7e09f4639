"""V-MoE routing: top-k of a noisy softmax, without renormalising."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moe_jax.config.fields import Rule, at_least, schedulable
from moe_jax.routing.choice import admissible, best, router_logits, softmax
from moe_jax.routing.token_choice.base import BaseLinearChoice
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums


@dataclass(frozen=True, kw_only=True)
class VMoE(BaseLinearChoice):
    """p = softmax(x W + noise_std / E * N(0, 1)); the k largest of p with weights p.

    Noise in training only. Importance is the sum of the softmax without noise; load_E is
    sum_t P(logit_i + fresh noise > the token's k-th largest noisy logit), 0 in evaluation. The
    paper's auxiliary loss is the mean of the importance and the load loss, weight 0.01, with
    unnormalised weights and capacity rounding "multiple_of_4". drop_order="batch_priority" is
    its batch-prioritised routing. Riquelme et al. (2106.05974) section 2 and appendix A.
    Ties go to the lower expert.
    """

    k: int = 2
    noise_std: float = schedulable(1.0)
    drop_order: str = "choice_major"

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 0, "noise_std")

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        clean_TE = router_logits(params, inputs, self.jitter)
        E = clean_TE.shape[1]
        noisy_TE, load_TE = clean_TE, None
        if inputs.train and inputs.key is not None:
            std = jnp.maximum(jnp.asarray(self.noise_std, jnp.float32) / E, 1e-6)
            noise_TE = jax.random.normal(jax.random.fold_in(inputs.key, 1), clean_TE.shape)
            noisy_TE = clean_TE + std * noise_TE
            threshold_T1 = jnp.maximum(jax.lax.top_k(noisy_TE, self.k)[0][:, -1:], -1e30)
            load_TE = jax.scipy.stats.norm.sf((threshold_T1 - clean_TE) / std)
        noisy_prob_TE = softmax(noisy_TE)
        weight_TK, expert_TK = best(noisy_prob_TE, self.k, admissible(noisy_prob_TE, noisy_TE))
        prob_TE = softmax(clean_TE)
        return self.decide(
            weight_TK, expert_TK, inputs, clean_TE, prob_TE, gate_TE=prob_TE, load_TE=load_TE
        )
