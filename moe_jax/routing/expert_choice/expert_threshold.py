"""Expert threshold: every expert takes the tokens above its own bar, which no token can move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule, at_least, one_of, schedulable
from moe_jax.routing.bias_balanced.bias import MARKS, count_below, counted_quantile
from moe_jax.routing.choice import admissible, best, renormalize, router_logits
from moe_jax.routing.scores import SCORES
from moe_jax.routing.token_choice.base import BaseLinearChoice
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums

BOUNDED = tuple(name for name in SCORES if name != "sqrt_softplus")
UNSET = -1.0  # of a threshold before its first update; scores are never negative


@dataclass(frozen=True, kw_only=True)
class ExpertThreshold(BaseLinearChoice):
    """s = score(x W); a token takes every expert with s_e > threshold_e, weights s as they are.

    The threshold of e is the score above which the share capacity_factor / E of the tokens lies,
    followed over global batches:

        threshold_e <- decay * threshold_e + (1 - decay) * quantile(s_e, 1 - capacity_factor / E)

    once per optimizer step, from soft counts between 1024 marks over [0, 1], so that it is
    continuous in the scores (`balancing_bias.count_below`, `counted_quantile`).
    The first update takes the quantile itself. Before it a token takes its capacity_factor best
    experts, rounded up. So a token has any number of experts, also none, capacity_factor on
    average; experts are balanced in expectation, without a loss, and a token's routes depend on
    no other token: causal. At inference it stands in for `expert_choice`.
    Sun et al. (2603.11535): sigmoid scores, no normalisation. Cost: the counts.

    Where we differ: the quantile is of the whole global batch; the first steps choose by token
    instead of by expert (the paper warms up with expert choice, which is not causal); `decay` is
    our default.

    k_max: the most experts of one token, the best ones; None: all. What it takes away is the
      metric `over_k_max`. Ties go to the lower expert.
    """

    takes_mask = False
    pooled = ("scores_EN", "over_k_max")

    capacity_factor: float = 2.0
    k_max: int | None = None
    score: str = "sigmoid"
    decay: float = schedulable(0.99)

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "k_max")
        yield from at_least(self, 0, "decay")
        yield from one_of(self, BOUNDED, "score")
        if self.decay >= 1:
            yield "decay", "must be below 1"
        if self.capacity_factor <= 0:
            yield "capacity_factor", "must be above 0"

    def check_experts(self, E: int) -> Iterator[Rule]:
        if self.capacity_factor > E:
            yield "capacity_factor", f"must be at most the number of experts, {E}"

    def choices(self, E: int) -> int:
        return E if self.k_max is None else self.k_max

    def experts_per_token(self, E: int, T: int) -> float:
        return min(self.capacity_factor, float(self.choices(E)))

    def state(self, E: int) -> dict[str, Array]:
        return {"threshold": jnp.full((E,), UNSET, jnp.float32)}

    def own_sums(self, E: int) -> dict[str, Array]:
        return {
            "scores_EN": jnp.zeros((E, MARKS), jnp.float32),
            "over_k_max": jnp.zeros((), jnp.float32),
        }

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TE = router_logits(params, inputs, self.jitter)
        E = logits_TE.shape[1]
        score_TE = SCORES[self.score](logits_TE)
        by_TE = admissible(score_TE, logits_TE)
        threshold_1E = state["threshold"][None, :]
        first = min(-int(-self.capacity_factor // 1), self.choices(E), E)
        rank_TE = jnp.argsort(jnp.argsort(-by_TE, axis=1, stable=True), axis=1)
        above_TE = jnp.where(threshold_1E == UNSET, rank_TE < first, by_TE > threshold_1E)
        above_TE &= logits_TE > -jnp.inf
        K = self.choices(E)
        weight_TK, expert_TK = best(score_TE, K, jnp.where(above_TE, score_TE, -jnp.inf))
        own = {}
        if inputs.train:
            counted_TE = inputs.valid_T[:, None] & (logits_TE > -jnp.inf)
            over_T = jnp.maximum(jnp.sum(above_TE, axis=1, dtype=jnp.int32) - K, 0)
            own = {
                "scores_EN": count_below(jax.lax.stop_gradient(score_TE), counted_TE),
                "over_k_max": jnp.sum(jnp.where(inputs.valid_T, over_T, 0), dtype=jnp.float32),
            }
        return self.decide(weight_TK, expert_TK, inputs, logits_TE, renormalize(score_TE), own=own)

    def metrics(self, state: RouterState, sums: Sums) -> dict[str, Float[Array, ""]]:
        """Mean threshold, and the share of the choices above it that k_max took away."""
        found = {"threshold": jnp.mean(state["threshold"])}
        if "over_k_max" in sums.own:
            over = sums.own["over_k_max"]
            found["over_k_max"] = over / jnp.maximum(
                over + jnp.sum(sums.wanted_E).astype(jnp.float32), 1
            )
        return found

    def update(self, state: RouterState, sums: Sums) -> RouterState:
        """The next thresholds; that of an expert without a counted token stays."""
        below_EN, old_E = sums.own["scores_EN"], state["threshold"]
        E = old_E.shape[0]
        quantile_E = counted_quantile(below_EN, 1 - self.capacity_factor / E)
        moved_E = jnp.where(
            old_E == UNSET, quantile_E, self.decay * old_E + (1 - self.decay) * quantile_E
        )
        return {"threshold": jnp.where(below_EN[:, -1] > 0, moved_E, old_E)}
