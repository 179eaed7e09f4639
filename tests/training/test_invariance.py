"""What must not change a training step: the mesh, the number of micro-batches, recomputation, the
layout. And what a bad step must leave alone."""

from __future__ import annotations

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.models.decoder import Decoder, DecoderConfig
from moe_jax.models.network import Network
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing import GShard, Mixtral, NoisyTopK
from moe_jax.routing.losses import Importance, LoadBalance, RouterZ, RoutingLosses
from moe_jax.tasks.language_model import NextToken
from moe_jax.training.state import TrainState
from moe_jax.training.step import Step
from tests.drawn import some
from tests.layers import of_all_layers

B, S, V = 16, 32, 40
LOSSES = RoutingLosses(
    load_balance=LoadBalance(coefficient=0.1),
    importance=Importance(coefficient=0.1, scope="row"),
    router_z=RouterZ(coefficient=0.01),
)
# The reference multiplies, because compiling takes all the time here and it compiles fastest.
MIXTRAL = MoEConfig(
    num_experts=8,
    expert_dim=12,
    losses=LOSSES,
    group_size=16,
    receive_factor=8.0,
    matmul="reference",
)
GSHARD = dataclasses.replace(
    MIXTRAL, router=GShard(), capacity_factor=1.0, layout="slots_scatter", group_size=64
)
NOISY = dataclasses.replace(MIXTRAL, router=NoisyTopK(k=2))


def raw_batch(seed=0):
    rng = np.random.default_rng(seed)
    segments = np.ones((B, S + 1), np.int32)
    segments[:, 20:] = 2
    segments[3, 25:] = 0
    segments[7, 5:] = 0
    return {
        "tokens": rng.integers(0, V, (B, S + 1)).astype(np.int32),
        "segments": segments,
        "row": np.arange(B, dtype=np.int32),
    }


def parameters(network):
    """Random parameters on the network's mesh; `network.init` would compile for seconds."""
    layers = {stack.name: stack.layers for stack in network.abstract_module.layout.stacks}

    def normal(keys, layer, shape):
        rng = np.random.default_rng([zlib.crc32("/".join(keys).encode()), layer])
        fan = shape[-1 if keys[-1] == "embedding" else -2] if len(shape) > 1 else 2
        return rng.normal(0, fan**-0.5, shape)

    def draw(path, leaf):
        first, *rest = (part.key for part in path)
        if path[-1].key == "scale":
            return np.ones(leaf.shape, leaf.dtype)
        if first != "layers":
            return normal([first, *rest], 0, leaf.shape).astype(leaf.dtype)
        # By layer, however they are stacked.
        of_layers = [normal(rest[1:], layer, leaf.shape[1:]) for layer in layers[rest[0]]]
        return np.stack(of_layers).astype(leaf.dtype)

    drawn = jax.tree_util.tree_map_with_path(draw, network.abstract)
    return jax.device_put(drawn, network.shardings)


def make(moe, mesh=None, accumulation=1, optimizer=None, **model):
    mesh = make_mesh(mesh or MeshConfig(), jax.devices() if mesh else jax.devices()[:1])
    config = DecoderConfig(
        **{
            "vocab_size": V,
            "num_layers": 2,
            "model_dim": 16,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 4,
            "mlp_dim": 24,
            **model,
        }
    )
    network = Network(lambda rngs: Decoder(config, moe, mesh, rngs=rngs), mesh)
    step = Step(
        network=network,
        task=NextToken(np.ones(V)),
        optimizer=optimizer or optax.adamw(1e-2),
        moe=moe,
        row_length=S,
        accumulation=accumulation,
        noise_seed=1,
    )
    params = parameters(network)
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=step.optimizer.init(params),
        router_state=network.module(params).router_state(),
        bad_steps=jnp.int32(0),
        skipped=jnp.int32(0),
        probe=jnp.full((1,), -1, jnp.int32),
    )
    return step, state


def run(moe, steps=5, **options):
    """Losses, gradient norms and drops of some steps."""
    step, state = make(moe, **options)
    train, found = jax.jit(step.train), []
    for i in range(steps):
        state, result = train(state, raw_batch(i), {})
        traffic = result.sums.traffic
        found.append((float(result.loss), float(result.grad_norm), int(traffic.dropped.sum())))
        assert int(traffic.overflow.sum()) == 0
    return np.array(found)


def close(found, expected):
    """Losses over all steps and the first steps' gradient norms to 1e-5; drops exactly."""
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found[:5, 1], expected[:5, 1], rtol=1e-5)
    np.testing.assert_array_equal(found[:, 2], expected[:, 2])


MESHES = {
    "8x1": MeshConfig(data=8),
    "4x2": MeshConfig(data=4, expert=2),
    "2x4": MeshConfig(data=2, expert=4),
    "1x8": MeshConfig(data=1, expert=8),
    "fsdp tensor expert": MeshConfig(data=1, fsdp=2, tensor=2, expert=2),
    "sequence": MeshConfig(data=2, expert=2, sequence=2),
}
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


def gap(a, b):
    return max(
        float(jnp.max(jnp.abs(x - y)) / (jnp.max(jnp.abs(y)) + 1e-9))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(Mixtral):
    """A router whose state adds up what it was asked for."""

    def state(self, E):
        return {"total": jnp.zeros((E,), jnp.int32), "updates": jnp.int32(0)}

    def update(self, state, sums):
        return {"total": state["total"] + sums.wanted_E, "updates": state["updates"] + 1}


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
