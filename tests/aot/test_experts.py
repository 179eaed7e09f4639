"""The experts of one absent TPU chip: which kernels, and how much arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe_jax.models.network import Network
from moe_jax.nn.context import Context, TokenBatch
from moe_jax.nn.moe_layer import MoEConfig, MoELayer
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.planning.hardware import topology_of
from moe_jax.planning.topologies import absent_devices, prepare_environment
from moe_jax.routing import Mixtral

prepare_environment()
# A program for absent devices can be stored but not read back.
jax.config.update("jax_enable_compilation_cache", False)
CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
B, S, D, F, K = 4, 512, 512, 1024, 2


def compiled(chip: str, E: int, **moe):
    """Forward and backward of a sparse layer in bfloat16 on one chip."""
    device = absent_devices(topology_of(CHIPS[chip]))[0]
    mesh = make_mesh(MeshConfig(), [device])
    config = MoEConfig(num_experts=E, expert_dim=F, router=Mixtral(k=K), **moe)
    network = Network(
        lambda rngs: MoELayer(
            config,
            model_dim=D,
            activation="swiglu",
            init_scale=1.0,
            param_dtype=jnp.bfloat16,
            mesh=mesh,
            rngs=rngs,
        ),
        mesh,
    )
    context = Context(train=True, capacity_factor=config.capacity_factor)

    def loss(params, x_BSD, batch):
        y_BSD, _ = network.apply(params, x_BSD, batch, context, {}, jnp.zeros((), jnp.int32))
        return jnp.sum(jnp.square(y_BSD.astype(jnp.float32)))

    def on_chip(shape, dtype):
        whole = NamedSharding(Mesh(np.array([device]), ("one",)), PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    params = jax.tree.map(lambda leaf: on_chip(leaf.shape, leaf.dtype), network.abstract)
    ids = on_chip((B, S), jnp.int32)
    batch = TokenBatch(
        token_BS=ids, position_BS=ids, segment_BS=ids, row_B=on_chip((B,), jnp.int32)
    )
    x_BSD = on_chip((B, S, D), jnp.bfloat16)
    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x_BSD, batch).compile()


def flops_over_ideal(exe) -> float:
    """XLA's count, in which a kernel counts what it says of itself: the products of its rows."""
    return exe.cost_analysis()["flops"] / (18 * B * S * K * D * F)


def kernel_calls(exe) -> int:
    return exe.as_text().count('custom_call_target="tpu_custom_call"')


@pytest.mark.parametrize(("chip", "E"), [("v5e", 8), ("v5e", 64), ("v5p", 64), ("v6e", 64)])
def test_dropless_experts_are_kernels_at_the_cost_of_their_rows(chip: str, E: int):
    exe = compiled(chip, E, layout="rows")
    assert kernel_calls(exe) == 9  # three products, each with two gradients
    assert 0.99 < flops_over_ideal(exe) < 1.05


def test_ragged_dot_would_cost_rows_times_groups():
    E = 64
    ragged = compiled("v5e", E, layout="rows", matmul="ragged_dot")
    assert flops_over_ideal(ragged) > E / 3  # its three weight gradients are dense


@pytest.mark.parametrize("chip", CHIPS)
def test_slots_at_their_capacity(chip: str):
    exe = compiled(chip, 8, layout="slots_scatter", capacity_factor=1.25)
    assert 1.2 < flops_over_ideal(exe) < 1.3
