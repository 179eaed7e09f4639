"""Even loads with chance in who goes where: random permutations of the experts."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moe_jax.routing.content_free.base import BaseContentFree, turn
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums


@dataclass(frozen=True, kw_only=True)
class Uniform(BaseContentFree):
    """Tokens take the experts of random permutations in turn: loads differ by at most 1.

    The valid tokens of a group are numbered t = 0, 1, ...; each E of them (a block) have a random
    permutation of the experts, and token t takes its places (t k + i) mod E, i = 0..k-1. So every
    token's experts are any k with the same chance, each block gives every expert k tokens, and a
    part of a block gives each its share to within 1. Weights 1/k. No token's choice depends on
    later ones; padding takes no number.

    In training the permutations follow from `inputs.key`. Else they are always the same, and t
    counts from the position of the group's first token, so that generation and evaluation agree;
    there loads differ by at most 2 in a group that does not start at a multiple of E.
    For benchmarks and as a baseline: the best balance that any router can have.
    """

    k: int = 2

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        E, T = inputs.E, inputs.x_TD.shape[0]
        drawn = inputs.key if inputs.train else None
        key = jax.random.fold_in(jax.random.key(0) if drawn is None else drawn, 0)
        turn_T = turn(inputs.valid_T, inputs.position_T, from_position=drawn is None)
        first = turn_T[0] // E
        block_N = first + jnp.arange((T - 1) // E + 2, dtype=jnp.int32)

        def permutation(block: jax.Array) -> jax.Array:
            return jax.random.permutation(jax.random.fold_in(key, block), E)

        order_NE = jax.vmap(permutation)(block_N)
        choice_K = jnp.arange(self.k, dtype=jnp.int32)
        place_TK = (turn_T[:, None] * self.k + choice_K[None, :]) % E
        expert_TK = order_NE[(turn_T // E - first)[:, None], place_TK].astype(jnp.int32)
        return self.decide_evenly(expert_TK, inputs)
