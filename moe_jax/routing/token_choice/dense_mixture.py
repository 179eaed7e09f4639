"""The dense mixture of 1991: a softmax gate over all experts, and every expert takes part."""

from __future__ import annotations

from dataclasses import dataclass

from moe_jax.routing.choice import admissible, best, router_logits, softmax
from moe_jax.routing.token_choice.base import BaseLinearChoice
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums


@dataclass(frozen=True, kw_only=True)
class DenseMixture(BaseLinearChoice):
    """p = softmax(x W); every token goes to every expert, with weight p_e.

    y = sum_e p_e(x) o_e(x): K = E choices, best first, so that a token's first choice is the
    argmax. Weights sum to 1. Ties go to the lower expert; an expert with logit -inf is never
    chosen (an unused row). A capacity factor of 1 holds every choice; below 1 the last tokens of a
    group lose all their experts, or under `choice_major` each token its least probable ones.

    Jacobs, Jordan, Nowlan and Hinton, "Adaptive Mixtures of Local Experts", Neural Computation 3
    (1991), pages 79-87: a gate linear in the input, as here; `bias` adds the constant input that a
    gate of few inputs needs. We differ: the paper trains the experts by the likelihood of a
    mixture, on outputs that are not combined (`experiments/local_experts/errors.py`); in a layer
    only the combined output is seen, which is the error that the paper argues against (eq. 1.1).
    """

    def choices(self, E: int) -> int:
        return E

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TE = router_logits(params, inputs, self.jitter)
        prob_TE, E = softmax(logits_TE), logits_TE.shape[1]
        weight_TK, expert_TK = best(prob_TE, E, admissible(prob_TE, logits_TE))
        return self.decide(weight_TK, expert_TK, inputs, logits_TE, prob_TE)
