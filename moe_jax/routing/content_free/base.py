"""What routers share that do not look at what a token holds: no parameters, even weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from moe_jax.routing.token_choice.base import BaseTokenChoice
from moe_jax.routing.types import Assignments, RouterInputs, Sums

START = 0x9E3779B9  # the golden ratio: `mix` maps 0 to 0


def mix(x: UInt32[Array, "*N"]) -> UInt32[Array, "*N"]:
    """A bijection of 32-bit words in which every input bit flips each output bit with a chance of
    about 1/2: the finaliser of MurmurHash3 (Appleby 2011)."""
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> jnp.uint32(16))


def hash_choice(words: tuple[Int[Array, "N"], ...], seed: int, E: int, k: int) -> Array:
    """The k of E experts with the largest hash(seed, *words, expert), (N, k) int32, best first.

    Distinct, each set of k experts alike likely, and stateless: any integer words, no table. One
    more expert takes over 1 / (E + 1) of the words and moves no others (highest random weight,
    Thaler, Ravishankar 1998). The hash has 24 bits; ties go to the lower expert.
    """
    state_N = jnp.full(words[0].shape, (START + seed) & 0xFFFFFFFF, jnp.uint32)
    for word_N in words:
        state_N = mix(state_N ^ word_N.astype(jnp.uint32))
    hash_NE = mix(state_N[:, None] ^ jnp.arange(1, E + 1, dtype=jnp.uint32)[None, :])
    score_NE = (hash_NE >> jnp.uint32(8)).astype(jnp.float32)  # exact
    return jax.lax.top_k(score_NE, k)[1].astype(jnp.int32)


def turn(
    valid_T: Bool[Array, "T"], position_T: Int[Array, "T"], from_position: bool
) -> Int[Array, "T"]:
    """Each token's number among the valid ones of its group, from 0, or from the position of the
    first of them: then a token that is generated alone has the number that it has in its row."""
    number_T = jnp.maximum(jnp.cumsum(valid_T.astype(jnp.int32)) - 1, 0)
    return number_T + position_T[jnp.argmax(valid_T)] if from_position else number_T


@dataclass(frozen=True, kw_only=True)
class BaseContentFree(BaseTokenChoice):
    """k distinct experts per token with weight 1/k each, and no parameters.

    Such a router has no logits. Its sums are those of logits 0: every token has the probability 1/E
    for each expert, so that entropy is log(E), `router_z_loss` log(E)^2 and `load_balance_loss` 1,
    all of them constant. No gradient flows through it.
    """

    k: int = 1

    def decide_evenly(
        self,
        expert_TK: Int[Array, "T K"],
        inputs: RouterInputs,
        own: Mapping[str, Array] | None = None,
    ) -> tuple[Assignments, Sums]:
        """The assignments and sums of these choices."""
        T, E = expert_TK.shape[0], inputs.E
        return self.decide(
            jnp.full(expert_TK.shape, 1 / self.k, jnp.float32),
            expert_TK,
            inputs,
            jnp.zeros((T, E), jnp.float32),
            jnp.full((T, E), 1 / E, jnp.float32),
            own=own,
        )
