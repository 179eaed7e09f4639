"""Stochastic experts: every token goes to experts drawn by chance."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moe_jax.routing.content_free.base import BaseContentFree, hash_choice
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums


@dataclass(frozen=True, kw_only=True)
class Random(BaseContentFree):
    """k distinct experts drawn uniformly for each token, with weights 1/k.

    In training new ones each step, by `inputs.key`; else by a hash of the token's id and its
    position in its document, so that evaluation and generation repeat and agree.
    The load of an expert among T tokens is binomial, B(T, k / E). The stochastic experts of THOR
    (Zuo et al. 2110.04260), which draws in evaluation too and adds a loss for the agreement of two
    draws, with k = 1. A baseline for what a trained router adds.
    """

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        if inputs.train and inputs.key is not None:
            key = jax.random.fold_in(inputs.key, 0)
            chance_TE = jax.random.uniform(key, (inputs.x_TD.shape[0], inputs.E))
            expert_TK = jax.lax.top_k(chance_TE, self.k)[1].astype(jnp.int32)
        else:
            known = [x for x in (inputs.id_T, inputs.position_T) if x is not None]
            expert_TK = hash_choice(tuple(known), 0, inputs.E, self.k)
        return self.decide_evenly(expert_TK, inputs)
