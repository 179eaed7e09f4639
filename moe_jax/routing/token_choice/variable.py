"""What routers share in which a token takes as many experts as it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.config.fields import Rule, at_least
from moe_jax.routing.choice import admissible, best
from moe_jax.routing.plan import count_experts
from moe_jax.routing.token_choice.base import BaseLinearChoice
from moe_jax.routing.types import Assignments, RouterInputs, RouterState, Sums


@dataclass(frozen=True, kw_only=True)
class BaseVariableChoice(BaseLinearChoice):
    """Token choice of a number of experts that the token decides, from logits x W.

    Rows are token-major with K = k_max places per token: its experts, best first, then unused rows.
    k_max: most experts of one token; None, or E and more: E. Of a token that wants more the best
      k_max are taken and the others counted (metric `truncated_fraction`: of all that is
      wanted). Unused rows cost no expert, but with K = E there are T E rows to sort and combine.
    """

    k_max: int | None = None

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "k_max")

    def choices(self, E: int) -> int:
        return E if self.k_max is None else min(self.k_max, E)

    def own_sums(self, E: int) -> dict[str, Array]:
        if self.choices(E) == E:
            return {}
        return {"truncated_E": jnp.zeros((E,), jnp.float32)}

    def decide_taken(
        self,
        taken_TE: Bool[Array, "T E"],
        score_TE: Float[Array, "T E"],
        expert_TE: Int[Array, "T E"],
        inputs: RouterInputs,
        logits_TE: Float[Array, "T E"],
        prob_TE: Float[Array, "T E"],
        own: Mapping[str, Array] | None = None,
    ) -> tuple[Assignments, Sums]:
        """Assignments of the ranks taken, with their scores as weights, and sums.

        taken, score and expert are by rank (`by_rank`). What k_max cuts away is counted in
        evaluation too, so that its metrics are those of training.
        """
        E = logits_TE.shape[1]
        K = self.choices(E)
        taken_TE = taken_TE & (expert_TE < E)
        kept_TK = taken_TE[:, :K]
        own = dict(own or {})
        if K < E:
            beyond_TE = taken_TE[:, K:] & inputs.valid_T[:, None]
            gone_E = count_experts(expert_TE[:, K:].reshape(-1), beyond_TE.reshape(-1), E)
            own["truncated_E"] = gone_E.astype(jnp.float32)
        return self.decide(
            jnp.where(kept_TK, score_TE[:, :K], 0),
            jnp.where(kept_TK, expert_TE[:, :K], E),
            inputs,
            logits_TE,
            prob_TE,
            own=own,
        )

    def metrics(self, state: RouterState, sums: Sums) -> dict[str, Float[Array, ""]]:
        if "truncated_E" not in sums.own:
            return {}
        active, truncated = jnp.sum(active_experts(sums)), jnp.sum(sums.own["truncated_E"])
        return {"truncated_fraction": truncated / jnp.maximum(active, 1)}


@dataclass(frozen=True, kw_only=True)
class BaseExpectedChoice(BaseVariableChoice):
    """A variable number of experts, of which no formula gives the mean.

    expected_k: experts of a token on average, as measured (moe/experts_per_token): from it follow
      capacities and FLOPs; nothing else depends on it.
    """

    expected_k: float = 2.0

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if self.expected_k <= 0:
            yield "expected_k", "must be above 0"

    def experts_per_token(self, E: int, T: int) -> float:
        return min(self.expected_k, float(self.choices(E)))


def by_rank(
    score_TE: Float[Array, "T E"], logits_TE: Float[Array, "T E"]
) -> tuple[Float[Array, "T E"], Int[Array, "T E"]]:
    """Each token's scores, largest first, and their experts; ties go to the lower expert. Where the
    logit is -inf the score is 0 and the expert E."""
    return best(score_TE, score_TE.shape[1], admissible(score_TE, logits_TE))


def active_experts(sums: Sums) -> Float[Array, "E"]:
    """How many tokens want each expert, with those beyond k_max."""
    wanted_E = sums.wanted_E.astype(jnp.float32)
    return wanted_E + sums.own.get("truncated_E", jnp.zeros_like(wanted_E))
