"""What must not change a training step: the mesh, the number of micro-batches, recomputation, the
layout. And what a bad step must leave alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.routing.losses import LoadBalance, RoutingLosses
from tests.drawn import some
from tests.layers import of_all_layers
from tests.training.steps import (
    GSHARD,
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

# Where tokens are dropped, a rounding error turns sooner or later into another choice.
STEPS = {"m": 20, "g": 5, "n": 5}


@pytest.fixture(scope="module")
def on_one_device():
    arms = (("m", MIXTRAL), ("g", GSHARD), ("n", NOISY))
    return {name: run(moe, STEPS[name]) for name, moe in arms}


@pytest.mark.grid
@pytest.mark.parametrize(
    ("name", "moe", "mesh"),
    [
        *some(
            [("m", MIXTRAL, mesh) for mesh in MESHES],
            [("m", MIXTRAL, "fsdp tensor expert")],
            several=True,
        ),
        pytest.param("g", GSHARD, "2x4", marks=pytest.mark.grid),
        pytest.param("n", NOISY, "2x4", marks=pytest.mark.grid),
    ],
)
def test_mesh(name, moe, mesh, on_one_device):
    """The same losses, exactly the same tokens dropped, noise by group, not by device."""
    close(run(moe, STEPS[name], mesh=MESHES[mesh]), on_one_device[name])
    if name == "g":
        assert on_one_device[name][:, 2].min() > 0


def sgd_step(moe, accumulation, **options):
    step, state = make(moe, accumulation=accumulation, optimizer=optax.sgd(1.0), **options)
    state, result = jax.jit(step.train)(state, raw_batch(), {})
    return state.params, float(result.loss)


@pytest.mark.grid
def test_micro_batches():
    """Global-batch and row scopes, with drops: the same gradient whatever the accumulation."""
    moe = GSHARD
    params, loss = sgd_step(moe, 1)
    other, other_loss = sgd_step(moe, 4)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    assert gap(other, params) < 2e-5
    planted = dataclasses.replace(
        moe, losses=RoutingLosses(load_balance=LoadBalance(coefficient=5.0, scope="micro_batch"))
    )
    assert gap(sgd_step(planted, 4)[0], sgd_step(planted, 1)[0]) > 1e-3


@pytest.mark.grid
def test_remat_chunks_of_the_loss_and_layouts():
    params, loss = sgd_step(MIXTRAL, 1)
    # Recomputed layers one by one and in a loop.
    variants = [(MIXTRAL, {"remat": remat}) for remat in ("full", "received")]
    variants += [(MIXTRAL, {"remat": "full", "unrolled_layers": 0})]
    variants += [(MIXTRAL, {"logits_chunks": 5}), (MIXTRAL, {"unrolled_layers": 0})]
    layouts = ("slots_scatter", "dense")
    variants += [(dataclasses.replace(MIXTRAL, layout=layout), {}) for layout in layouts]
    for moe, model in variants:
        other, other_loss = sgd_step(moe, 1, **model)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        assert gap(by_layer(other), by_layer(params)) < 2e-5, (moe.layout, model)


def by_layer(params):
    """Both layers of a model in one tree, whether they are a stack or two."""
    return {**params, "layers": of_all_layers(params["layers"])}


def test_bad_step_changes_nothing():
    step, state = make(MIXTRAL)
    train = jax.jit(step.train)
    good, _ = train(state, raw_batch(), {})
    broken = dataclasses.replace(
        good, params={**good.params, "head": good.params["head"] * jnp.nan}
    )
    after, result = train(broken, raw_batch(1), {})
    assert int(result.bad_steps) == int(after.bad_steps) == int(after.skipped) == 1
    for name in ("params", "opt_state", "router_state"):
        for new, old in zip(
            jax.tree.leaves(getattr(after, name)),
            jax.tree.leaves(getattr(broken, name)),
            strict=True,
        ):
            np.testing.assert_array_equal(new, old)
    twice, _ = train(after, raw_batch(2), {})
    assert int(twice.bad_steps) == 2
    mended = dataclasses.replace(twice, params=good.params)
    healthy, _ = train(mended, raw_batch(3), {})
    assert (int(healthy.bad_steps), int(healthy.skipped)) == (0, 2)


@pytest.mark.grid
def test_router_state_is_updated_once_a_step_from_the_global_batch():
    moe = dataclasses.replace(MIXTRAL, router=Counting(k=2), every=2, first=1)
    totals = []
    for options in ({}, {"accumulation": 4}, {"mesh": MESHES["2x4"]}):
        step, state = make(moe, **options, num_layers=4)
        before = jax.tree.map(np.array, state.router_state)
        evaluate = jax.jit(step.evaluate, static_argnums=4)
        evaluate(state.params, state.router_state, raw_batch(), {}, None)
        assert jax.tree.all(jax.tree.map(np.array_equal, before, state.router_state))
        state, result = jax.jit(step.train)(state, raw_batch(), {})
        layers = step.layout.in_layer_order(state.router_state)
        assert np.array_equal(layers["updates"], [1, 1])
        np.testing.assert_array_equal(layers["total"], result.sums.routing.wanted_E)
        totals.append(np.asarray(layers["total"]))
    valid = int((raw_batch()["segments"][:, :-1] > 0).sum())
    assert np.all(totals[0].sum(1) == 2 * valid)
    assert np.array_equal(totals[0], totals[1]) and np.array_equal(totals[0], totals[2])
