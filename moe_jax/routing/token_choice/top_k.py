"""Softmax over all experts, then the k most probable, renormalised or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moe_jax.routing.choice import admissible, best, renormalize, router_logits, softmax
from moe_jax.routing.token_choice.base import BaseLinearChoice
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums


@dataclass(frozen=True, kw_only=True)
class TopK(BaseLinearChoice):
    """p = softmax(x W); the k largest of p, with weights p, or p / sum of the k if `renormalize`.

    Without renormalising: OLMoE (2409.02060, k=8 of 64) and DeepSeekMoE (2401.06066) eq. 9-11,
    k=6 of 64. With: the same as `mixtral`. Ties go to the lower expert.
    """

    k: int = 2
    renormalize: bool = False

    def warn(self) -> Iterator[str]:
        if self.k == 1 and self.renormalize:
            yield (
                "moe.router.k = 1 with renormalize: every weight is the constant 1, so the router "
                "gets no gradient from the task"
            )

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TE = router_logits(params, inputs, self.jitter)
        prob_TE = softmax(logits_TE)
        weight_TK, expert_TK = best(prob_TE, self.k, admissible(prob_TE, logits_TE))
        if self.renormalize:
            weight_TK = renormalize(weight_TK)
        return self.decide(weight_TK, expert_TK, inputs, logits_TE, prob_TE)
