"""What DeepSeek's routers share: scores, a balancing bias, and choices limited to few groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule, at_least, one_of, schedulable
from moe_jax.routing.bias_balanced.bias import (
    MARKS,
    margins_below,
    proportional_update,
    quantile_bias,
    sign_update,
)
from moe_jax.routing.choice import admissible, best, renormalize, router_logits, scatter_gates
from moe_jax.routing.scores import SCORES
from moe_jax.routing.token_choice.base import BaseLinearChoice
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums

BIAS_UPDATES = ("none", "sign", "proportional", "quantile")
GROUP_SCORES = {"max": 1, "top2_sum": 2}  # how many of a group's best scores are added


def limit_to_groups(
    score_TE: Float[Array, "T E"], groups: int, kept: int, group_score: str
) -> Float[Array, "T E"]:
    """The scores of each token's `kept` best of `groups` expert groups, -inf elsewhere.

    Expert e is in group e // (E / groups), which devices of an expert axis of that size hold. A
    group is as good as its best expert ("max", DeepSeek-V2 2405.04434 section 2.2.2) or as the sum
    of its two best ("top2_sum", DeepSeek-V3 2412.19437 section 2.1.2). Ties go to the lower group.
    """
    if kept >= groups:
        return score_TE
    T, E = score_TE.shape
    by_group_TNe = score_TE.reshape(T, groups, E // groups)
    best_TNn = jax.lax.top_k(by_group_TNe, min(GROUP_SCORES[group_score], E // groups))[0]
    _, group_TM = jax.lax.top_k(jnp.sum(best_TNn, axis=2), kept)
    kept_TN = jnp.any(group_TM[:, :, None] == jnp.arange(groups)[None, None, :], axis=1)
    return jnp.where(kept_TN[:, :, None], by_group_TNe, -jnp.inf).reshape(T, E)


@dataclass(frozen=True, kw_only=True)
class BaseBiasedTopK(BaseLinearChoice):
    """s = score(x W); the k largest of s + b among the best groups; weights s (without b).

    Fields:
      score: "softmax", "sigmoid" or "sqrt_softplus".
      renormalize: weights over their sum. scale: a factor on all weights (routed scaling factor).
      expert_groups, kept_groups, group_score: see `limit_to_groups`.
      bias_update: what moves b once per optimizer step, from the counts of the whole global batch:
        "none", "sign", "proportional" (with `bias_rate`) or "quantile" (needs scores of at most 1;
        counts are soft, see `balancing_bias.count_below`).
    For losses and statistics the probabilities are s over its sum over all experts. b starts at 0
    and is no parameter: no gradient flows to it.
    """

    pooled = ("margins_EN",)

    k: int = 2
    score: str = "sigmoid"
    renormalize: bool = True
    scale: float = 1.0
    expert_groups: int = 1
    kept_groups: int = 1
    group_score: str = "top2_sum"
    bias_update: str = "none"
    bias_rate: float = schedulable(0.001)

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from one_of(self, SCORES, "score")
        yield from one_of(self, GROUP_SCORES, "group_score")
        yield from one_of(self, BIAS_UPDATES, "bias_update")
        yield from at_least(self, 1, "expert_groups", "kept_groups")
        yield from at_least(self, 0, "bias_rate")
        if self.scale <= 0:
            yield "scale", "must be above 0"
        if self.kept_groups > self.expert_groups:
            yield "kept_groups", f"must be at most expert_groups = {self.expert_groups}"
        if self.bias_update == "quantile" and self.score == "sqrt_softplus":
            yield "bias_update", '"quantile" needs scores of at most 1: "sigmoid" or "softmax"'

    def check_experts(self, E: int) -> Iterator[Rule]:
        """The rules that need the number of experts."""
        if min(self.expert_groups, self.kept_groups) < 1:
            return  # `check` tells
        if E % self.expert_groups:
            yield "expert_groups", f"must divide the {E} experts"
        elif self.k > (open_to_token := E // self.expert_groups * self.kept_groups):
            yield "k", f"must be at most the {open_to_token} experts of {self.kept_groups} groups"

    def warn(self) -> Iterator[str]:
        if self.k == 1 and self.renormalize:
            yield (
                "moe.router.k = 1 with renormalize: every weight is a constant, so the router gets "
                "no gradient from the task"
            )

    @property
    def takes_mask(self) -> bool:  # type: ignore[override]
        """Quantiles of margins are of all tokens, whichever experts they may choose."""
        return self.bias_update != "quantile"

    def state(self, E: int) -> dict[str, Array]:
        return {} if self.bias_update == "none" else {"bias": jnp.zeros((E,), jnp.float32)}

    def own_sums(self, E: int) -> dict[str, Array]:
        if self.bias_update != "quantile":
            return {}
        return {"margins_EN": jnp.zeros((E, MARKS), jnp.float32)}

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TE = router_logits(params, inputs, self.jitter)
        score_TE = SCORES[self.score](logits_TE)
        by_TE = admissible(score_TE, logits_TE)
        if "bias" in state:
            by_TE = by_TE + state["bias"][None, :]
        limited_TE = limit_to_groups(by_TE, self.expert_groups, self.kept_groups, self.group_score)
        weight_TK, expert_TK = best(score_TE, self.k, limited_TE)
        if self.renormalize:
            weight_TK = renormalize(weight_TK)
        own = {}
        if self.bias_update == "quantile" and inputs.train:
            quiet = jax.lax.stop_gradient((score_TE, by_TE))
            own["margins_EN"] = margins_below(*quiet, self.k, inputs.valid_T)
        return self.decide(
            self.scale * weight_TK,
            expert_TK,
            inputs,
            logits_TE,
            renormalize(score_TE),
            gate_TE=scatter_gates(weight_TK, expert_TK, logits_TE.shape[1]),
            own=own,
        )

    def update(self, state: RouterState, sums: Sums) -> RouterState:
        if self.bias_update == "none":
            return state
        if self.bias_update == "quantile":
            return {"bias": quantile_bias(sums.own["margins_EN"], self.k)}
        step = sign_update if self.bias_update == "sign" else proportional_update
        return {"bias": step(state["bias"], sums.wanted_E, self.bias_rate)}
