"""Other routes in place of the router's, against a plain loop over tokens in float64."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.routing import GShard, LossFree, Mixtral, MoEPlusPlus, Switch, TopK
from moe_jax.routing.counterfactual import MaskBest, Replay, RouteBy, token_probabilities
from moe_jax.routing.types import Recorded
from tests.routing.any_router import inputs, parameters

T, E = 24, 6
ROUTERS = [Mixtral(k=2), TopK(k=3), Switch(), LossFree(k=2), GShard()]


def original(router, padding=0):
    batch = inputs(train=False, padding=padding)
    params = parameters(router)
    a, sums = router.route(params, router.state(E), batch)
    return params, batch, a, sums


def rows(a):
    """[(experts, weights)] of each token, used rows only."""
    expert_TK, weight_TK = (np.asarray(x).reshape(a.T, a.k) for x in (a.expert_R, a.weight_R))
    return [(e[e < E], w[e < E]) for e, w in zip(expert_TK, weight_TK, strict=True)]


@pytest.mark.parametrize("router", ROUTERS, ids=lambda router: type(router).__name__)
@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_mask_best(router, n):
    params, batch, a, sums = original(router, padding=3)
    new, new_sums = MaskBest(n=n).route(router, params, router.state(E), batch)
    prob_TE = np.asarray(token_probabilities(router, params, router.state(E), batch), np.float64)
    for (before, weights), (after, new_weights), prob_E in zip(
        rows(a), rows(new), prob_TE, strict=True
    ):
        rest = sorted(set(range(E)) - set(before.tolist()), key=lambda e: (-prob_E[e], e))
        best = [*before.tolist(), *rest]  # beyond its choices a token's best are the most probable
        assert set(after) == set(best[n:][: len(before)]) and not set(after) & set(best[:n])
        if len(before):
            share = prob_E[after] / prob_E[after].sum() * weights.sum()
            np.testing.assert_allclose(new_weights, share, rtol=1e-5)
    used = np.asarray(new.expert_R)
    assert np.array_equal(new_sums.wanted_E, np.bincount(used, minlength=E + 1)[:E])
    assert int(new_sums.valid) == T - 3
    np.testing.assert_array_equal(new_sums.prob_E, sums.prob_E)


def test_masking_nearly_all_leaves_unused_rows():
    router = TopK(k=3)
    params, batch, a, _ = original(router)
    half, few = (MaskBest(n=n).route(router, params, {}, batch)[0] for n in (3, 5))
    assert all(len(e) == 3 for e, _ in rows(half)) and all(len(e) == 1 for e, _ in rows(few))
    # The one that is left has the whole weight.
    for (_, weights), (_, alone) in zip(rows(a), rows(few), strict=True):
        np.testing.assert_allclose(alone.sum(), weights.sum(), rtol=1e-6)


def test_experts_at_home_are_not_among_the_masked():
    """MoE++'s cheap experts have no matrices: the n best that have some are taken away."""
    router = MoEPlusPlus(k=3, zero=1, copy=1, constant=0)
    params, batch, a, _ = original(router)
    prob_TE = np.asarray(token_probabilities(router, params, router.state(E), batch))
    new, _ = MaskBest(n=1).route(router, params, router.state(E), batch)
    first = np.asarray(a.expert_R).reshape(T, 3)[:, 0]
    assert np.any(first >= E)  # some tokens like a cheap expert best
    for (before, _), (after, _), prob_E in zip(rows(a), rows(new), prob_TE, strict=True):
        best = before[0] if len(before) else np.argmax(prob_E)
        assert best not in after and len(after) == len(before)


def test_route_by_keeps_the_total_weight():
    router = TopK(k=2)
    params, batch, a, _ = original(router, padding=2)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Shifted(Mixtral):
        """Token t goes to experts t and t + 1, whatever it is."""

        def params(self, D, E):
            return {}

        def route(self, params, state, inputs):
            expert_TK = (inputs.position_T[:, None] + jnp.arange(2, dtype=jnp.int32)[None]) % E
            ones_TE = jnp.ones((T, E))
            return self.decide(jnp.full((T, 2), 0.5), expert_TK, inputs, ones_TE, ones_TE / E)

    new, sums = RouteBy(router=Shifted()).route(router, params, {}, batch)
    for t, ((_, weights), (after, new_weights)) in enumerate(zip(rows(a), rows(new), strict=True)):
        assert list(after) == ([] if t >= T - 2 else [t % E, (t + 1) % E])
        np.testing.assert_allclose(new_weights.sum(), weights.sum(), rtol=1e-6)
    assert np.array_equal(sums.wanted_E, np.bincount(new.expert_R, minlength=E + 1)[:E])


def test_replay_gives_the_recorded_routes_in_the_order_of_service():
    router = GShard()  # choice-major
    params, batch, a, _ = original(router)
    other = inputs(seed=9, train=False)
    recorded = Recorded(expert_TK=a.expert_R.reshape(T, a.k), weight_TK=a.weight_R.reshape(T, a.k))
    new, _ = Replay().route(router, params, {}, dataclasses.replace(other, recorded=recorded))
    for name in ("expert_R", "weight_R", "priority_R", "token_R"):
        np.testing.assert_array_equal(getattr(new, name), getattr(a, name))
    with pytest.raises(ValueError, match="recorded"):
        Replay().route(router, params, {}, batch)


def test_runs_under_jit_and_vmap():
    router = Mixtral(k=2)
    params, batch, _, _ = original(router)
    groups = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), batch)
    route = jax.jit(jax.vmap(lambda one: MaskBest().route(router, params, {}, one)[0]))
    alone = MaskBest().route(router, params, {}, batch)[0]
    np.testing.assert_array_equal(route(groups).expert_R[1], alone.expert_R)
