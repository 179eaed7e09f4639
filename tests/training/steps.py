"""Small training steps for the tests, and how close two of them are."""

from __future__ import annotations

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe_jax.models.decoder import Decoder, DecoderConfig
from moe_jax.models.network import Network
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing import GShard, Mixtral, NoisyTopK
from moe_jax.routing.losses import Importance, LoadBalance, RouterZ, RoutingLosses
from moe_jax.tasks.language_model import NextToken
from moe_jax.training.state import TrainState
from moe_jax.training.step import Step

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


def gap(a, b):
    return max(
        float(jnp.max(jnp.abs(x - y)) / (jnp.max(jnp.abs(y)) + 1e-9))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(Mixtral):
    """A router whose state adds up what it was asked for."""

    def state(self, E):
        return {"total": jnp.zeros((E,), jnp.int32), "updates": jnp.int32(0)}

    def update(self, state, sums):
        return {"total": state["total"] + sums.wanted_E, "updates": state["updates"] + 1}
