"""GShard routing: the two best experts, the second perhaps at random."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moe_jax.config.fields import Rule, one_of
from moe_jax.routing.choice import admissible, best, renormalize, router_logits, softmax
from moe_jax.routing.token_choice.base import BaseLinearChoice
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums

SECOND_POLICIES = ("all", "random")


@dataclass(frozen=True, kw_only=True)
class GShard(BaseLinearChoice):
    """p = softmax(x W); the two best experts with weights p1 / (p1 + p2) and p2 / (p1 + p2).

    second_policy, in training: "all" always wants the second expert; "random" wants it with
    probability min(1, 2 p2 / (p1 + p2)). In evaluation it is always wanted.
    First choices are served before second choices, as published; that lets later tokens displace
    earlier ones, so the router counts as not causal unless drop_order="token_major".
    Lepikhin et al. (2006.16668) algorithm 1. Ties go to the lower expert.
    """

    second_policy: str = "random"
    drop_order: str = "choice_major"

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from one_of(self, SECOND_POLICIES, "second_policy")

    def choices(self, E: int) -> int:
        return 2

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TE = router_logits(params, inputs, self.jitter)
        prob_TE = softmax(logits_TE)
        best_TK, expert_TK = best(prob_TE, 2, admissible(prob_TE, logits_TE))
        weight_TK = renormalize(best_TK)
        T, E = logits_TE.shape
        if self.second_policy == "random" and inputs.train and inputs.key is not None:
            key = jax.random.fold_in(inputs.key, 1)
            wanted_T = jax.random.uniform(key, (T,)) < 2 * weight_TK[:, 1]
            expert_TK = expert_TK.at[:, 1].set(jnp.where(wanted_T, expert_TK[:, 1], E))
        return self.decide(weight_TK, expert_TK, inputs, logits_TE, prob_TE)
