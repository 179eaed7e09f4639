"""Expert choice: every expert takes its best tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.config.fields import Rule, at_least
from moe_jax.routing.capacity import expert_capacity
from moe_jax.routing.choice import TIED, make_sums, router_logits, softmax
from moe_jax.routing.token_choice.base import BaseLinearLogits
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums

# Of the capped choice.
ENTROPY = 0.001  # lambda (2202.09368, footnote 2)
FIRST_ENTROPY = 0.3
ITERATIONS = 50
BISECTIONS = 32
TOLERANCE = 1e-3  # of the sums of A


@dataclass(frozen=True, kw_only=True)
class ExpertChoice(BaseLinearLogits):
    """S = softmax(x W) over experts; expert e takes its c best tokens by S, weights S as they are.

    c = T * capacity_factor / E, rounded up, at least 1 and at most T. Zhou et al. (2202.09368)
    eq. 1-4, whose capacity_factor is 2. Every expert has the same number of tokens by construction
    (fewer only where a group has fewer valid tokens than c); a token has any number of experts,
    also none. Ties go to the lower token, and scores are ties (`tied_at_last`) that rounding
    alone tells apart. The choice compares the tokens of a group with later ones: not causal. Cost:
    2 E partial sorts of T scores.

    max_experts: the most experts of one token (section 3.3): experts choose by the scores of an
      entropy-regularised linear program, `capped_scores`, at the cost of some 3200 passes over
      T x E numbers. Its solution is real-valued, so a token may still be chosen too often; it then
      keeps its best max_experts (the lower of equals), and the others lose that place, which the
      metric `over_cap` counts. The paper leaves that step open.
    """

    capacity_factor: float = 2.0
    max_experts: int | None = None

    own_capacity = True

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "max_experts")
        if self.capacity_factor <= 0:
            yield "capacity_factor", "must be above 0"
        elif self.max_experts is not None and self.max_experts < self.capacity_factor:
            yield "max_experts", f"must be at least capacity_factor = {self.capacity_factor}"

    @property
    def causal_choice(self) -> bool:
        return False

    def choices(self, E: int) -> int:
        return E if self.max_experts is None else self.max_experts

    def tokens_per_expert(self, E: int, T: int) -> int:
        """c."""
        c = expert_capacity(T, E, 1.0, self.capacity_factor)
        assert c is not None
        return c

    def experts_per_token(self, E: int, T: int) -> float:
        return self.tokens_per_expert(E, T) * E / T

    def own_sums(self, E: int) -> dict[str, Array]:
        return {} if self.max_experts is None else {"over_cap": jnp.zeros((), jnp.float32)}

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TE = router_logits(params, inputs, self.jitter)
        T, E = logits_TE.shape
        c = self.tokens_per_expert(E, T)
        score_TE = softmax(logits_TE)
        open_TE = inputs.valid_T[:, None] & (logits_TE > -jnp.inf)
        by_TE = jax.lax.stop_gradient(score_TE)
        most = self.choices(E)
        if most < E:
            by_TE = jnp.round(capped_scores(by_TE, open_TE, c, most) / (ENTROPY / 8))
        by_TE = jnp.where(open_TE, by_TE, -jnp.inf)
        by_Ec, token_Ec = jax.lax.top_k(tied_at_last(by_TE.T, c), c)
        taken_Ec = by_Ec > -jnp.inf
        own = {"over_cap": jnp.zeros((), jnp.float32)} if self.max_experts is not None else {}
        if most < E:
            within_Ec = _within_cap(by_Ec, token_Ec, T, most)
            own["over_cap"] = jnp.sum(taken_Ec & ~within_Ec, dtype=jnp.float32)
            taken_Ec &= within_Ec
        expert_Ec = jnp.broadcast_to(jnp.arange(E, dtype=jnp.int32)[:, None], (E, c))
        chosen_TE = jnp.zeros((T, E), bool).at[token_Ec, expert_Ec].set(taken_Ec)
        weight_Ec = jnp.where(taken_Ec, score_TE[token_Ec, expert_Ec], 0)
        assignments = Assignments(
            token_R=token_Ec.astype(jnp.int32).reshape(-1),
            expert_R=jnp.where(taken_Ec, expert_Ec, E).reshape(-1),
            weight_R=weight_Ec.reshape(-1),
            T=T,
            E=E,
            c=c,
        )
        gate_TE = jnp.where(chosen_TE, score_TE, 0)
        return assignments, make_sums(
            assignments,
            logits_TE,
            score_TE,
            gate_TE,
            inputs.valid_T,
            own=own if inputs.train else None,
        )

    def metrics(self, state: RouterState, sums: Sums) -> dict[str, Float[Array, ""]]:
        """over_cap: share of the experts' choices that the cap on a token took away."""
        if "over_cap" not in sums.own:
            return {}
        over = sums.own["over_cap"]
        return {
            "over_cap": over / jnp.maximum(over + jnp.sum(sums.wanted_E).astype(jnp.float32), 1)
        }


def capped_scores(
    score_TE: Float[Array, "T E"], open_TE: Bool[Array, "T E"], c: int, most: int
) -> Float[Array, "T E"]:
    """S - u_e - v_t of the u and v with which A = min(1, exp((S - u_e - v_t) / ENTROPY)) solves

        max <S, A> + ENTROPY * H(A)   with   sum_t A[t, e] = c,   sum_e A[t, e] <= most,   A <= 1

    over the open pairs. Zhou et al. (2202.09368) section 3.3. Projects by turns onto the experts'
    and onto the tokens' constraint, A <= 1 being part of both: the u of every expert given v, then
    the v >= 0 of every token given u, each by bisection. The paper projects onto the three sets
    one after the other (Dykstra), which after its 100 iterations is still far from c tokens an
    expert: such a step moves u by about ENTROPY. The entropy falls to ENTROPY over the iterations.
    Where open tokens are too few for that, c is what an expert has of them, or an even share of
    all their places.
    """
    T, E = score_TE.shape
    tokens, experts = (jnp.sum(jnp.any(open_TE, axis=axis)) for axis in (1, 0))
    even = tokens.astype(jnp.float32) * most / jnp.maximum(experts, 1).astype(jnp.float32)
    count_E = jnp.minimum(jnp.sum(open_TE, axis=0).astype(jnp.float32), jnp.minimum(even, c))
    most_T = jnp.full((T,), most, jnp.float32)

    def solve(i: Int[Array, ""], duals: tuple[Array, Array]) -> tuple[Array, Array]:
        fallen = jnp.minimum(i.astype(jnp.float32) / (0.7 * ITERATIONS), 1)
        entropy = FIRST_ENTROPY * (ENTROPY / FIRST_ENTROPY) ** fallen

        def above(gap_TE: Array, axis: int, target: Array) -> Array:
            A_TE = jnp.exp(jnp.minimum(gap_TE / entropy, 0))
            # If a range of values meets the target, take its lower end: rounding must not choose.
            return jnp.sum(jnp.where(open_TE, A_TE, 0), axis=axis) > target + TOLERANCE

        _, v_T = duals
        rest_TE = score_TE - v_T[:, None]
        low_E = jnp.full((E,), -2.0)
        u_E = _bisect(lambda u_E: above(rest_TE - u_E[None, :], 0, count_E), low_E, 4.0)
        less_TE = score_TE - u_E[None, :]
        v_T = _bisect(lambda v_T: above(less_TE - v_T[:, None], 1, most_T), jnp.zeros((T,)), 4.0)
        return u_E, v_T

    u_E, v_T = jax.lax.fori_loop(0, ITERATIONS, solve, (jnp.zeros((E,)), jnp.zeros((T,))))
    return score_TE - u_E[None, :] - v_T[:, None]


def _bisect(
    too_low: Callable[[Array], Array], low: Float[Array, "N"], width: float
) -> Float[Array, "N"]:
    """Up to where in [low, low + width] `too_low` holds, for each entry; `low` where nowhere."""

    def halve(i: Array, low: Array) -> Array:
        middle = low + width * 0.5 ** (i.astype(jnp.float32) + 1)
        return jnp.where(too_low(middle), middle, low)

    return jax.lax.fori_loop(0, BISECTIONS, halve, low)


def tied_at_last(by_ET: Float[Array, "E T"], c: int) -> Float[Array, "E T"]:
    """With the scores within 2^-18 of an expert's c-th largest equal to it. Tokens of the same
    history have scores that differ by rounding alone, differently on every mesh: that must not
    decide which of them are the c best."""
    # The least, and not [:, -1:]: XLA for CPU would sort all scores and cut once.
    last_E1 = jnp.min(jax.lax.top_k(by_ET, c)[0], axis=1, keepdims=True)
    near_ET = jnp.abs(by_ET - last_E1) <= TIED * jnp.abs(last_E1)
    return jnp.where(near_ET & (last_E1 > -jnp.inf), last_E1, by_ET)


def _within_cap(
    by_Ec: Float[Array, "E c"], token_Ec: Int[Array, "E c"], T: int, most: int
) -> Bool[Array, "E c"]:
    """Which choices are among the `most` of their token with the largest scores."""
    E = by_Ec.shape[0]
    expert_E1 = jnp.arange(E, dtype=jnp.int32)[:, None]
    by_TE = jnp.full((T, E), -jnp.inf).at[token_Ec, expert_E1].set(by_Ec)
    # Stable: of equals the lower expert.
    order_TE = jnp.argsort(-by_TE, axis=1, stable=True)
    rank_TE = jnp.argsort(order_TE, axis=1)
    return rank_TE[token_Ec, expert_E1] < most
