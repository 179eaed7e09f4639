"""Top-p routing: the fewest experts whose probabilities add up to p."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule, at_least, schedulable
from moe_jax.routing.choice import router_logits, softmax
from moe_jax.routing.token_choice.variable import BaseExpectedChoice, by_rank
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums


@dataclass(frozen=True, kw_only=True)
class TopP(BaseExpectedChoice):
    """q = softmax(x W); the smallest set of experts with sum of q >= p, weights q as they are.

    An expert is taken where the sum of the better ones is below p; the best one always. So p = 0 is
    the argmax and p = 1 every expert with a positive probability. Ties go to the lower expert; at
    most `k_max` experts, the sum may then stay below p.

    entropy_coefficient: of the dynamic loss -sum_e q_e log q_e, the mean over tokens (`entropy`),
    without which the router learns flat q, hence many experts; `moe.losses.router.coefficient`
    (1 by default) multiplies it.

    Huang et al. (2403.07652) section 3: p = 0.4, coefficient 1e-4, beside a balance loss
    (moe.losses.load_balance). XMoE (2403.18926) takes the same set of many small experts.
    We differ where the sum meets p exactly: their code then takes one more expert.
    Cost: T K rows of K = k_max (E by default); the experts compute only what is taken.
    """

    p: float = schedulable(0.4)
    entropy_coefficient: float = 1e-4

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 0, "entropy_coefficient")
        if not 0 <= self.p <= 1:
            yield "p", "must be between 0 and 1"

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TE = router_logits(params, inputs, self.jitter)
        prob_TE = softmax(logits_TE)
        ranked_TE, expert_TE = by_rank(prob_TE, logits_TE)
        # Not cumsum - own: its rounding could take an expert too many.
        better_TE = jnp.cumsum(jnp.pad(ranked_TE[:, :-1], ((0, 0), (1, 0))), axis=1)
        # Rounding may bring the sum to 1 before the last expert.
        p = jnp.where(jnp.asarray(self.p, jnp.float32) < 1, self.p, jnp.inf)
        first_E = jnp.arange(prob_TE.shape[1]) == 0
        taken_TE = ((better_TE < p) & (ranked_TE > 0)) | first_E[None, :]
        return self.decide_taken(taken_TE, ranked_TE, expert_TE, inputs, logits_TE, prob_TE)

    def losses(self, sums: Sums) -> dict[str, Float[Array, ""]]:
        if self.entropy_coefficient == 0:
            return {}
        mean = sums.entropy / jnp.maximum(sums.valid, 1).astype(jnp.float32)
        return {"entropy": self.entropy_coefficient * mean}
