"""Other routes than the router's own, on the same trained model: what would have happened if.

Each makes another router of the trained one while a model is evaluated (`rerouted`). Weights keep
each token's total, so that only where it goes differs.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.routing.choice import choose, renormalize, top
from moe_jax.routing.plan import count_experts, one_hot
from moe_jax.routing.types import (
    Assignments,
    Router,
    RouterInputs,
    RouterParams,
    RouterState,
    SoftPlan,
    Sums,
)

Decision = tuple[Assignments | SoftPlan, Sums]


@runtime_checkable
class Counterfactual(Protocol):
    """Hashable: a static part of the compiled evaluation."""

    def route(
        self,
        router: Router,
        params: RouterParams,
        state: RouterState,
        inputs: RouterInputs,
    ) -> Decision:
        """In place of router.route(params, state, inputs), for one group. Load and first choices of
        the sums are of the new routes, the rest is the router's own."""
        ...


def rerouted(router: Router, by: Counterfactual | None) -> Router:
    """The router, or one that is the same in all but its choices, which the counterfactual makes
    in its place."""
    if by is None:
        return router
    chooses = by

    class Rerouted(type(router)):  # type: ignore[misc]
        own = router

        def route(self, params: RouterParams, state: RouterState, inputs: RouterInputs) -> Decision:
            return chooses.route(router, params, state, inputs)

    new = copy.copy(router)
    object.__setattr__(new, "__class__", Rerouted)
    return new


@dataclass(frozen=True, kw_only=True)
class MaskBest:
    """The `n` best experts of each token are taken away: its choices in their order, behind them
    the most probable others.

    Its other choices stay; the most probable ones of the rest fill the places, as far as there are
    any, ties to the lower expert. weight = p_e / (sum of p over the new choices) * (the token's
    total weight before).
    ValueError for a router in which tokens do not rank experts.
    """

    n: int = 1

    def route(
        self,
        router: Router,
        params: RouterParams,
        state: RouterState,
        inputs: RouterInputs,
    ) -> Decision:
        decision, sums = router.route(params, state, inputs)
        a = _hard(decision)
        if a.k is None:
            raise ValueError("masking the best expert needs a router whose tokens rank experts")
        expert_TK, total_T = a.expert_R.reshape(a.T, a.k), _total_weight(a)
        prob_TE = token_probabilities(router, params, state, inputs)
        ranked_TKE = one_hot(expert_TK, a.E)
        # Choices by rank, from 2 on: probabilities, by which the others follow, are at most 1.
        place_K = jnp.arange(a.k + 1, 1, -1, dtype=prob_TE.dtype)
        place_TE = jnp.sum(jnp.where(ranked_TKE, place_K[None, :, None], 0), axis=1)
        _, best_TN = top(jnp.where(place_TE > 0, place_TE, prob_TE), self.n)
        gone_TE = jnp.any(one_hot(best_TN, a.E), axis=1)
        stays_TE = (place_TE > 0) & ~gone_TE
        by_TE = jnp.where(stays_TE, prob_TE + 2, prob_TE)
        by_TE = jnp.where(gone_TE | (prob_TE <= 0), -jnp.inf, by_TE)
        _, new_TK = top(by_TE, a.k)
        # As many choices as before: a dynamic k keeps its value.
        wanted_T = jnp.sum(expert_TK < a.E, axis=1, dtype=jnp.int32)
        rank_K = jnp.arange(a.k, dtype=jnp.int32)
        new_TK = jnp.where(rank_K[None, :] < wanted_T[:, None], new_TK, a.unused)
        new_TK = jnp.where(new_TK < a.E, new_TK, a.unused)
        prob_TK = jnp.take_along_axis(prob_TE, jnp.minimum(new_TK, a.E - 1), axis=1)
        weight_TK = renormalize(jnp.where(new_TK < a.E, prob_TK, 0)) * total_T[:, None]
        return _decide(router, weight_TK, new_TK, inputs, a, sums)


@dataclass(frozen=True, kw_only=True)
class RouteBy:
    """Tokens go where another router, one without parameters (hash, random, round_robin), sends
    them; weight = (the token's total weight before) / (number of its new experts)."""

    router: Router

    def route(
        self,
        router: Router,
        params: RouterParams,
        state: RouterState,
        inputs: RouterInputs,
    ) -> Decision:
        decision, sums = router.route(params, state, inputs)
        a = _hard(decision)
        other = _hard(self.router.route({}, self.router.state(inputs.E), inputs)[0])
        assert other.k is not None, "a router without parameters gives every token its k experts"
        expert_TK = other.expert_R.reshape(a.T, other.k)
        used_TK = expert_TK < a.E
        even_TK = renormalize(used_TK.astype(jnp.float32))
        expert_TK = jnp.where(used_TK, expert_TK, a.unused)
        return _decide(router, even_TK * _total_weight(a)[:, None], expert_TK, inputs, a, sums)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The routes of a trace, experts and weights; capacity is served anew."""

    def route(
        self,
        router: Router,
        params: RouterParams,
        state: RouterState,
        inputs: RouterInputs,
    ) -> Decision:
        recorded = inputs.recorded
        if recorded is None:
            raise ValueError("a replay needs recorded routes")
        decision, sums = router.route(params, state, inputs)
        a = _hard(decision)
        return _decide(router, recorded.weight_TK, recorded.expert_TK, inputs, a, sums)


def token_probabilities(
    router: Router, params: RouterParams, state: RouterState, inputs: RouterInputs
) -> Float[Array, "T E"]:
    """The router's probabilities of every token of a group, without noise: the prob_E of a group of
    that one token."""
    router = getattr(router, "own", router)
    quiet = dataclasses.replace(inputs, key=None, train=False, allowed_E=None, recorded=None)

    def one_token(token: RouterInputs) -> Array:
        alone = jax.tree.map(lambda leaf: leaf[None], token)
        alone = dataclasses.replace(alone, allowed_E=inputs.allowed_E)
        return router.route(params, state, alone)[1].prob_E

    return jax.vmap(one_token)(quiet)


def _hard(decision: Assignments | SoftPlan) -> Assignments:
    if isinstance(decision, SoftPlan):
        raise ValueError("a soft router mixes tokens into slots: it has no routes to change")
    return decision


def _total_weight(a: Assignments) -> Float[Array, "T"]:
    return jnp.zeros((a.T,), jnp.float32).at[a.token_R].add(a.weight_R)


def _decide(
    router: Router,
    weight_TK: Array,
    expert_TK: Array,
    inputs: RouterInputs,
    a: Assignments,
    s: Sums,
) -> Decision:
    """Assignments in the router's order of service, and its sums with their counts."""
    order = getattr(router, "drop_order", "token_major")
    new = choose(weight_TK, expert_TK, inputs, a.E, order, a.Z)
    expert_R = new.expert_R
    first_T = expert_R.reshape(a.T, -1)[:, 0]
    sums = dataclasses.replace(
        s,
        wanted_E=count_experts(expert_R, expert_R < a.E, a.E),
        first_E=count_experts(first_T, first_T < a.E, a.E),
    )
    return new, sums
