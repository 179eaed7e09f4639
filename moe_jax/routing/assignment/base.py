"""What routers share that balance the tokens of a group over experts, each token with k of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.config.fields import Rule, one_of
from moe_jax.routing.token_choice.base import BaseLinearChoice
from moe_jax.routing.types import RouterInputs, RouterState, Sums

EVALUATIONS = ("greedy", "balanced")


@dataclass(frozen=True, kw_only=True)
class BaseBalancedChoice(BaseLinearChoice):
    """Token choice where the tokens of a group compete for experts.

    evaluation: "greedy", each token's largest logits alone, or "balanced", as in training.

    Metric, in training: `moved`, the share of tokens whose first choice is not the expert with
    their largest logit.
    """

    takes_mask = False

    evaluation: str = "greedy"

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from one_of(self, EVALUATIONS, "evaluation")

    @property
    def causal_choice(self) -> bool:
        """False: in training, which experts a token gets depends on the other tokens."""
        return False

    def balances(self, inputs: RouterInputs) -> bool:
        return inputs.train or self.evaluation == "balanced"

    def metrics(self, state: RouterState, sums: Sums) -> dict[str, Float[Array, ""]]:
        """The counts of tokens in `Sums.own`, over the valid tokens."""
        tokens = jnp.maximum(sums.valid, 1).astype(jnp.float32)
        return {name: count / tokens for name, count in sums.own.items() if count.ndim == 0}


def count_moved(
    logits_TE: Float[Array, "T E"], first_T: Int[Array, "T"], valid_T: Bool[Array, "T"]
) -> Float[Array, ""]:
    """How many valid tokens got an expert other than that of their largest logit."""
    E = logits_TE.shape[1]
    got_T1 = jnp.take_along_axis(logits_TE, jnp.minimum(first_T, E - 1)[:, None], axis=1)
    moved_T = valid_T & (first_T < E) & (got_T1[:, 0] < jnp.max(logits_TE, axis=1))
    return jnp.sum(moved_T, dtype=jnp.float32)
