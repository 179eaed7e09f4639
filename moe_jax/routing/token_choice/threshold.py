"""Threshold routing: every expert whose score reaches a fixed value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax.numpy as jnp

from moe_jax.config.fields import Rule, at_least, one_of, schedulable
from moe_jax.routing.choice import renormalize, router_logits
from moe_jax.routing.scores import SCORES
from moe_jax.routing.token_choice.variable import BaseExpectedChoice, by_rank
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums


@dataclass(frozen=True, kw_only=True)
class Threshold(BaseExpectedChoice):
    """s = score(x W); every expert with s >= `threshold`, the best one always; weights s.

    score: "softmax" (at most 1 / threshold experts of a token), "sigmoid" (any number) or
    "sqrt_softplus". Ties go to the lower expert; of more than `k_max` the best are taken. For
    losses and statistics the probabilities are s over its sum over all experts.

    The simplest of its kind: DynMoE's top-any gating (2405.14297) without its trained thresholds
    and cosine scores. The threshold of XMoE (2403.18926) is another one, on the sum of the
    probabilities, which is `top_p`. No paper gives the default of 0.1.
    Cost: T K rows of K = k_max (E by default); the experts compute only what is taken.
    """

    threshold: float = schedulable(0.1)
    score: str = "softmax"

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from one_of(self, SCORES, "score")
        yield from at_least(self, 0, "threshold")

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TE = router_logits(params, inputs, self.jitter)
        score_TE = SCORES[self.score](logits_TE)
        ranked_TE, expert_TE = by_rank(score_TE, logits_TE)
        first_E = jnp.arange(score_TE.shape[1]) == 0
        taken_TE = (ranked_TE >= self.threshold) | first_E[None, :]
        prob_TE = renormalize(score_TE)
        return self.decide_taken(taken_TE, ranked_TE, expert_TE, inputs, logits_TE, prob_TE)
