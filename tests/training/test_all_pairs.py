"""Routers with dispatchers on meshes: a step gives the same gradients as one device that computes
every expert on every token. Each pair of a kind of router, a dispatcher and a mesh at least once;
and every router. (`python -m moe_jax.check` runs one router in some twenty variants.)"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest

from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.routing import ROUTERS
from moe_jax.routing.losses import LoadBalance, RouterZ, RoutingLosses
from tests.drawn import some
from tests.training.steps import gap, make, raw_batch

DISPATCHERS = (
    ("rows", "all_to_all"),
    ("rows", "gather"),
    ("rows", "ragged"),
    ("slots_scatter", "all_to_all"),
    ("slots_einsum", "gather"),
)
# Routers that mix tokens into slots.
SOFT = tuple(kind for kind, router in ROUTERS.items() if router.soft)
HARD = tuple(kind for kind in ROUTERS if kind not in SOFT)
SOFT_DISPATCHERS = (("slots_einsum", "all_to_all"), ("slots_einsum", "gather"))
MESHES = {
    "data 8": MeshConfig(data=8),
    "expert 8": MeshConfig(data=1, expert=8),
    "data 2, expert 4": MeshConfig(data=2, expert=4),
    "fsdp 2, expert 2, tensor 2": MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
    "data 2, expert 2, sequence 2": MeshConfig(data=2, expert=2, sequence=2),
}

# At capacity factor 1 exactly even loads lose nothing.
EVEN = {"uniform", "round_robin", "base", "dense_mixture"}


def all_pairs(*choices):
    """Few tuples, one value of each sequence, in which every pair of values of two sequences
    stands together: greedily the tuple with most pairs that are still missing."""
    places = list(itertools.combinations(range(len(choices)), 2))
    missing = {(i, j, a, b) for i, j in places for a in choices[i] for b in choices[j]}
    found = []
    while missing:
        best = max(
            itertools.product(*choices),
            key=lambda case: sum((i, j, case[i], case[j]) in missing for i, j in places),
        )
        missing -= {(i, j, best[i], best[j]) for i, j in places}
        found.append(best)
    return found


def one_step(router, layout, transport="local", **options):
    kind = ROUTERS[router]
    moe = MoEConfig(
        num_experts=8,
        expert_dim=12,
        router=kind(),
        capacity_factor=None if kind.own_capacity else 1.0,
        group_size=16,
        layout=layout,
        transport=transport,
        matmul="reference",
        receive_factor=8.0,
        losses=RoutingLosses(
            load_balance=LoadBalance(coefficient=0.5), router_z=RouterZ(coefficient=0.1)
        ),
    )
    step, state = make(moe, optimizer=optax.sgd(1.0), num_layers=1, **options)
    after, result = jax.jit(step.train)(state, raw_batch(), {})
    return jax.device_get((after.params, result.loss, result.sums.traffic))


@pytest.fixture(scope="module", params=some(ROUTERS, ()))
def on_one_device(request):
    return request.param, one_step(request.param, "dense")


# A router of each kind of plan and state: token-major, choice-major with noise, a dynamic number of
# experts with a loss of its own, experts that choose, undispatched experts, a whole group at once,
# ids alone, own sums.
KINDS = (
    "mixtral",
    "gshard",
    "remoe",
    "expert_choice",
    "moe_plus_plus",
    "base",
    "hash",
    "quantile_balancing",
)
SETS = (
    (KINDS, DISPATCHERS, tuple(MESHES)),
    (SOFT, SOFT_DISPATCHERS, tuple(MESHES)),
)
PAIRS = [case for values in SETS for case in all_pairs(*values)]
# The others share these plans: each once, over the dispatchers in turn.
OTHERS = [kind for kind in HARD if kind not in KINDS]
CASES = PAIRS + [
    (kind, DISPATCHERS[i % len(DISPATCHERS)], "data 2, expert 4") for i, kind in enumerate(OTHERS)
]


def test_cases_hold_every_pair_and_every_router():
    for values in SETS:
        for i, j in itertools.combinations(range(3), 2):
            found = {(case[i], case[j]) for case in PAIRS if case[0] in values[0]}
            assert found == set(itertools.product(values[i], values[j]))
    assert {router for router, _, mesh in CASES if "expert" in mesh} == set(ROUTERS)


def test_same_gradients(on_one_device, subtests):
    router, (params, loss, traffic) = on_one_device
    lossless = router in EVEN or ROUTERS[router].own_capacity
    assert (int(traffic.dropped.sum()) > 0) != lossless
    for _, dispatcher, mesh in (case for case in CASES if case[0] == router):
        with subtests.test(dispatcher=dispatcher, mesh=mesh):
            other, other_loss, other_traffic = one_step(router, *dispatcher, mesh=MESHES[mesh])
            np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
            assert gap(other, params) < 2e-5
            for field in dataclasses.fields(traffic):
                np.testing.assert_array_equal(
                    getattr(other_traffic, field.name), getattr(traffic, field.name), field.name
                )
