"""Experts in turn."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from moe_jax.routing.content_free.base import BaseContentFree, turn
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums


@dataclass(frozen=True, kw_only=True)
class RoundRobin(BaseContentFree):
    """Token t takes the experts (t k + i) mod E, i = 0..k-1, with weights 1/k.

    t numbers the valid tokens of a group, from the position of the first of them: the loads of a
    group differ by at most 1, and generation agrees with evaluation. Padding takes no number. For
    benchmarks: exactly even, nothing drawn, nothing trained.
    """

    k: int = 2

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        turn_T = turn(inputs.valid_T, inputs.position_T, from_position=True)
        choice_K = jnp.arange(self.k, dtype=jnp.int32)
        expert_TK = (turn_T[:, None] * self.k + choice_K[None, :]) % inputs.E
        return self.decide_evenly(expert_TK, inputs)
