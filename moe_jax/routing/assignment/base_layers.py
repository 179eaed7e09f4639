"""BASE layers: every expert gets the same number of tokens, by the best assignment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from moe_jax.config.fields import Rule, at_least
from moe_jax.routing.assignment.auction import Assignment, balanced_assignment
from moe_jax.routing.assignment.base import BaseBalancedChoice, count_moved
from moe_jax.routing.choice import router_logits, softmax, top
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums


@dataclass(frozen=True, kw_only=True)
class BaseLayers(BaseBalancedChoice):
    """The assignment with the largest sum of x_t . w_e, each expert with as many tokens (k = 1);
    weight sigmoid(x_t . w_e) of the token's expert.

    Lewis et al. (2103.16716): the assignment in training, the largest logit alone in evaluation
    (`evaluation`). No gradient through the assignment. Of V valid tokens an expert gets at most
    ceil(V / E); with a capacity_factor of 1 nothing is dropped in training.

    epsilon, max_rounds: of the auction, `auction.balanced_assignment`; the sum is within
    (T + E) * epsilon * the range of logits of the best one. Ties are told there; greedy ones go to
    the lower expert. Cost: one sort of T + E bids and some T x E arithmetic a round, tens to
    hundreds of rounds a group, then T steps of T; nothing is differentiated.

    Metrics besides `moved`: `unfinished`, the share of tokens whose auction reached max_rounds;
    `greedy`, of those that got a free place only after that.

    Differences to the paper and its code (fairseq): the assignment is taken within a group of
    tokens of one device, without the random exchange of tokens between devices before it; fairseq
    stops at epsilon = range / 50 and scores the layer's input before its norm; experts have the
    usual initialisation here.
    """

    epsilon: float = 1e-5
    max_rounds: int = 1000

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "max_rounds")
        if not 4e-6 <= self.epsilon <= 1:
            yield "epsilon", "must be from 4e-6 (float32 prices) to 1"

    def choices(self, E: int) -> int:
        return 1

    def own_sums(self, E: int) -> dict[str, Array]:
        names = ("moved", "unfinished", "greedy")
        return {name: jnp.zeros((), jnp.float32) for name in names}

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TE = router_logits(params, inputs, self.jitter)
        E = logits_TE.shape[1]
        own = {}
        if self.balances(inputs):
            fixed_TE = jax.lax.stop_gradient(logits_TE)
            found = balanced_assignment(
                fixed_TE, inputs.valid_T, epsilon=self.epsilon, max_rounds=self.max_rounds
            )
            expert_T1 = found.expert_T[:, None]
            if inputs.train:
                own = self._own(found, fixed_TE, inputs.valid_T)
        else:
            _, expert_T1 = top(logits_TE, 1)
        logit_T1 = jnp.take_along_axis(logits_TE, jnp.minimum(expert_T1, E - 1), axis=1)
        weight_T1 = jax.nn.sigmoid(jnp.where(expert_T1 < E, logit_T1, 0))
        weight_T1 = jnp.where(expert_T1 < E, weight_T1, 0)
        return self.decide(weight_T1, expert_T1, inputs, logits_TE, softmax(logits_TE), own=own)

    def _own(self, found: Assignment, logits_TE: Array, valid_T: Array) -> dict[str, Array]:
        tokens = jnp.sum(valid_T, dtype=jnp.float32)
        return {
            "moved": count_moved(logits_TE, found.expert_T, valid_T),
            "unfinished": jnp.where(found.finished, 0, tokens),
            "greedy": jnp.sum(found.greedy_T, dtype=jnp.float32),
        }
