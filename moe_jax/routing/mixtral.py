"""Mixtral routing: softmax over the k best logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moe_jax.routing.token_choice import (
    LinearChoice,
    best,
    choose,
    logits_of,
    make_sums,
    router_logits,
    scatter_gates,
    softmax,
)
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums


@dataclass(frozen=True, kw_only=True)
class Mixtral(LinearChoice):
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
        expert_TK = best(logits_TE, self.k)[1]
        weight_TK = softmax(logits_of(logits_TE, expert_TK))
        prob_TE = softmax(logits_TE)
        E = logits_TE.shape[1]
        assignments = choose(weight_TK, expert_TK, inputs, E, self.drop_order)
        gate_TE = scatter_gates(weight_TK, expert_TK, E)
        return assignments, make_sums(assignments, logits_TE, prob_TE, gate_TE, inputs.valid_T)
