"""The training step against its own definition: loss scopes, scalars, reported norms, and the
collectives of the compiled step of a run."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.routing import VMoE
from moe_jax.routing.counterfactual import Replay
from moe_jax.routing.losses import Importance, LoadBalance, RouterZ, RoutingLosses
from moe_jax.routing.types import Recorded
from tests.drawn import some
from tests.layers import of_all_layers
from tests.training.steps import (
    GSHARD,
    LOSSES,
    MESHES,
    MIXTRAL,
    NOISY,
    Counting,
    close,
    gap,
    make,
    raw_batch,
    run,
)

# --- what must not matter ---


@pytest.mark.grid
@pytest.mark.parametrize(
    ("moe", "mesh"),
    [(GSHARD, MeshConfig(data=8)), (NOISY, MeshConfig(data=1, expert=8))],
    ids=["drops, 8x1", "noise, 1x8"],
)
def test_the_two_extreme_meshes(moe, mesh):
    close(run(moe, steps=2, mesh=mesh), run(moe, steps=2))


def step_of(moe, **options):
    """Parameters after one step of plain SGD, and its result."""
    step, state = make(moe, optimizer=optax.sgd(1.0), **options)
    after, result = jax.jit(step.train)(state, raw_batch(), {})
    return state.params, after.params, result


@pytest.mark.grid
def test_every_additive_scope_under_accumulation():
    """Load balance per row of two groups, importance per group, z over the batch; tokens are
    dropped and rows are padded. One, two (on eight devices) and four micro-batches agree."""
    losses = RoutingLosses(
        load_balance=LoadBalance(coefficient=1.0, scope="row"),
        importance=Importance(coefficient=1.0, scope="group"),
        router_z=RouterZ(coefficient=1.0),
    )
    moe = dataclasses.replace(GSHARD, losses=losses, group_size=16)
    _, params, result = step_of(moe)
    assert int(result.sums.traffic.dropped.sum()) > 0
    for options in ({"accumulation": 2, "mesh": MESHES["2x4"]}, {"accumulation": 4}):
        _, other, found = step_of(moe, **options)
        np.testing.assert_allclose(found.loss, result.loss, rtol=1e-5)
        assert gap(jax.device_get(other), jax.device_get(params)) < 2e-5, options
        for name in ("wanted_E", "valid"):
            np.testing.assert_array_equal(
                getattr(found.sums.routing, name), getattr(result.sums.routing, name)
            )
        assert int(found.sums.traffic.dropped.sum()) == int(result.sums.traffic.dropped.sum())


@pytest.mark.grid
def test_reported_norms_and_the_other_layout_and_remat_policy():
    """With SGD of rate 1 the gradient is the change of the parameters."""
    before, after, result = step_of(MIXTRAL)
    grads = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b), before, after)
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(result.grad_norm, norm, rtol=1e-4)
    experts = of_all_layers(grads["layers"])["moe"]["experts"].values()  # (L, E, ., .) each
    squares = sum((g**2).sum((2, 3)) for g in experts)
    np.testing.assert_allclose(result.expert_grad_norm, np.sqrt(squares), rtol=1e-3, atol=1e-6)

    einsum = dataclasses.replace(MIXTRAL, layout="slots_einsum")
    _, other, found = step_of(einsum, remat="dots")
    np.testing.assert_allclose(found.loss, result.loss, rtol=1e-5)
    assert gap(other, after) < 2e-5


@pytest.mark.grid
def test_a_global_loss_that_is_not_linear_in_its_sums_under_accumulation():
    """CV^2 of the importance of the whole batch: not <gradient, sums>, which is 0 for it."""
    losses = RoutingLosses(importance=Importance(coefficient=1.0))
    moe = dataclasses.replace(MIXTRAL, losses=losses)
    _, params, result = step_of(moe, num_layers=1)
    _, other, found = step_of(moe, num_layers=1, accumulation=2)
    np.testing.assert_allclose(found.loss, result.loss, rtol=1e-5)
    assert gap(other, params) < 2e-5
    task = result.sums.task
    assert float(result.loss) - float(task["nats"]) / int(task["tokens"]) > 1e-2


def test_micro_batches_take_turns_among_the_groups_of_rows():
    """Groups of two rows, four micro-batches: number m has the groups m, m + 4, ... so that every
    shard of the batch has its part of each."""
    step, _ = make(GSHARD)
    raw = raw_batch()
    split = jax.tree.map(np.asarray, step._split(raw, step._grouping, 4))
    rows = [[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15]]
    np.testing.assert_array_equal(split["row"], rows)
    np.testing.assert_array_equal(split["tokens"], raw_batch()["tokens"][rows])


@pytest.mark.grid
def test_noise_and_capacity_of_training_and_evaluation():
    """Training has other noise at every step and its own capacity; evaluation no noise, and the
    capacity that it is given."""
    moe = dataclasses.replace(NOISY, router=VMoE(k=2, noise_std=80.0), capacity_factor=1.0)
    step, state = make(moe, optimizer=optax.sgd(0.0))  # the parameters stay
    train = jax.jit(step.train)
    later, first = train(state, raw_batch(), {})
    _, second = train(later, raw_batch(), {})
    assert not np.array_equal(first.sums.routing.wanted_E, second.sums.routing.wanted_E)
    again = train(state, raw_batch(), {})[1]
    np.testing.assert_array_equal(first.sums.routing.wanted_E, again.sums.routing.wanted_E)

    def evaluated(moe, factor):
        step, _ = make(moe)
        run = jax.jit(lambda state: step.evaluate(state.params, {}, raw_batch(), {}, factor)[0])
        return run(state)

    quiet = dataclasses.replace(moe, router=VMoE(k=2, noise_std=0.0))
    tight, calm = evaluated(moe, 0.5), evaluated(quiet, 0.5)
    np.testing.assert_array_equal(tight.routing.wanted_E, calm.routing.wanted_E)
    roomy = evaluated(moe, None)
    assert int(tight.traffic.dropped.sum()) > 0 == int(roomy.traffic.dropped.sum())
    np.testing.assert_array_equal(tight.traffic.slots, roomy.traffic.slots + tight_slots(0.5))


@pytest.mark.grid
@pytest.mark.parametrize(
    ("moe", "mesh", "most", "parts"),
    some(
        [(GSHARD, None, 5, 4), (GSHARD, "2x4", 1, 1), (NOISY, "2x4", 3, 2), (NOISY, None, 16, 1)],
        [(GSHARD, None, 5, 4)],
        several=True,
    ),
)
def test_evaluation_in_micro_batches(moe, mesh, most, parts):
    """No more rows at once than a micro-batch of training has, where the mesh has rows for it; the
    sums are those of one pass, with routes that are replayed too."""
    step, state = make(moe, mesh=MESHES[mesh] if mesh else None)
    expert = np.random.default_rng(0).integers(8, size=(2, 16, 32, 2))
    replayed = Recorded(
        expert_TK=jnp.asarray(expert, jnp.int32), weight_TK=jnp.full(expert.shape, 0.5)
    )

    def evaluated(step, counterfactual=None, recorded=None):
        evaluate = jax.jit(step.evaluate, static_argnums=(4, 5))
        return evaluate(state.params, {}, raw_batch(), {}, 1.0, counterfactual, recorded)

    limited = dataclasses.replace(step, max_rows=most)
    assert limited._evaluation_parts(raw_batch()) == parts
    for arguments in ((), (Replay(), replayed)):
        found, expected = evaluated(limited, *arguments), evaluated(step, *arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def tight_slots(factor):
    """Slots of each layer: of every group of 16 tokens, but for one of padding alone,
    E * ceil(16 * 2 * factor / E)."""
    groups = raw_batch()["segments"][:, :-1].reshape(-1, 16)
    return np.any(groups > 0, axis=1).sum() * 8 * math.ceil(16 * 2 * factor / 8)


# --- the loss, and what makes a step bad ---


def leaves_equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_loss_scalars_and_bad_losses():
    """loss = mean nats + coefficient * sum over layers of mean z. A coefficient that is NaN or
    inf makes a bad step: nothing but the counters changes, and nothing is compiled again."""
    schedulable = "moe.losses.router_z.coefficient"
    moe = dataclasses.replace(
        MIXTRAL,
        router=Counting(k=2),
        losses=dataclasses.replace(
            LOSSES, load_balance=LoadBalance(), importance=Importance(), router_z=RouterZ()
        ),
    )
    step, state = make(moe)
    train = jax.jit(step.train)

    def at(state, coefficient):
        return train(state, raw_batch(), {schedulable: np.float32(coefficient)})

    good, result = at(state, 0.5)
    at(good, 0.5)
    compilations = train._cache_size()
    sums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), result.sums)
    z = np.sum(sums.routing.z / sums.routing.valid)
    np.testing.assert_allclose(
        result.loss, sums.task["nats"] / sums.task["tokens"] + z / 2, rtol=1e-5
    )
    plain = at(state, 0)[1]
    np.testing.assert_allclose(plain.loss, sums.task["nats"] / sums.task["tokens"], rtol=1e-5)
    assert not leaves_equal(good.params, state.params)
    for bad_value in (np.nan, np.inf):
        after, result = at(good, bad_value)
        assert not np.isfinite(result.loss)
        for name in ("params", "opt_state", "router_state"):
            assert leaves_equal(getattr(after, name), getattr(good, name)), name
        assert (int(after.bad_steps), int(after.skipped), int(after.step)) == (1, 1, 2)
    healthy, _ = at(after, 0.5)
    assert (int(healthy.bad_steps), int(healthy.skipped), int(healthy.step)) == (0, 1, 3)
    assert not leaves_equal(healthy.router_state, good.router_state)
    assert train._cache_size() == compilations


def test_a_dense_model():
    step, state = make(MoEConfig(every=0))
    state, result = jax.jit(step.train)(state, raw_batch(), {})
    task = result.sums.task
    np.testing.assert_allclose(result.loss, float(task["nats"]) / int(task["tokens"]), rtol=1e-6)
    assert (result.layers, result.sums.routing, result.expert_grad_norm) == ({}, None, None)
    segments = raw_batch()["segments"]
    targets = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    assert int(task["tokens"]) == targets.sum()
