"""Mixtral routing: softmax over the k best logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moe_jax.routing.choice import router_logits, softmax, top
from moe_jax.routing.token_choice.base import BaseLinearChoice
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums


@dataclass(frozen=True, kw_only=True)
class Mixtral(BaseLinearChoice):
    """The k largest of x W; weights = softmax over those k logits.

    Equal to softmax over all experts, renormalised over the k chosen ones. Probabilities for
    losses and statistics are the full softmax. Jiang et al. (2401.04088) section 2.1; Mixtral
    8x7B has k=2 of 8, dropless, with load-balance coefficient 0.02 in Hugging Face's
    normalisation. Ties go to the lower expert.
    """

    k: int = 2

    def warn(self) -> Iterator[str]:
        if self.k == 1:
            yield (
                "moe.router.k = 1 with kind mixtral: a softmax over one logit is the constant 1, "
                "so the router gets no gradient from the task; kind=switch weights by probability"
            )

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TE = router_logits(params, inputs, self.jitter)
        best_TK, expert_TK = top(logits_TE, self.k)
        weight_TK = softmax(best_TK)
        prob_TE = softmax(logits_TE)
        return self.decide(weight_TK, expert_TK, inputs, logits_TE, prob_TE)
