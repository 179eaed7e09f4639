"""Switch Transformer routing: one expert per token."""

from __future__ import annotations

from dataclasses import dataclass

from moe_jax.config.fields import schedulable
from moe_jax.routing.choice import admissible, best, router_logits, softmax
from moe_jax.routing.token_choice.base import BaseLinearChoice
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums


@dataclass(frozen=True, kw_only=True)
class Switch(BaseLinearChoice):
    """p = softmax(x W); the token goes to argmax p with weight max p.

    The softmax comes before the choice: after a choice of one it would be the constant 1 and the
    router would get no gradient. Fedus, Zoph, Shazeer (2101.03961) eq. 1-2; the paper trains with
    jitter 0.01, initial scale 0.1, capacity factor 1 to 2 and load-balance coefficient 0.01.
    Ties go to the lower expert.
    """

    jitter: float = schedulable(0.01)
    init_scale: float = 0.1

    def choices(self, E: int) -> int:
        return 1

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TE = router_logits(params, inputs, self.jitter)
        prob_TE = softmax(logits_TE)
        weight_TK, expert_TK = best(prob_TE, 1, admissible(prob_TE, logits_TE))
        return self.decide(weight_TK, expert_TK, inputs, logits_TE, prob_TE)
