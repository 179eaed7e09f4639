"""Attention on absent TPU chips: which kernels, and what exists at once."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from moe_jax.nn.attention import Attention
from moe_jax.nn.mixer import RowSizes
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.planning.hardware import topology_of
from moe_jax.planning.topologies import absent_devices, prepare_environment

prepare_environment()
# A program for absent devices can be stored but not read back.
jax.config.update("jax_enable_compilation_cache", False)
CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
B, S, D, N, M, H = 4, 1024, 256, 4, 2, 64


def compiled(chip: str, S: int = S, **mesh_sizes) -> str:
    """Forward and backward on two chips, as text."""
    devices = absent_devices(topology_of(CHIPS[chip]))[:2]
    mesh = make_mesh(MeshConfig(**mesh_sizes), devices)
    layer = nnx.eval_shape(
        lambda: Attention(
            RowSizes(model_dim=D, num_heads=N, num_kv_heads=M, head_dim=H, rope_theta=1e4),
            mesh,
            nnx.Rngs(0),
            jnp.bfloat16,
        )
    )
    graph, params = nnx.split(layer)

    def loss(params, x_BSD, position_BS, segment_BS):
        y_BSD, _ = nnx.merge(graph, params)(x_BSD, position_BS, segment_BS)
        return jnp.sum(jnp.square(y_BSD.astype(jnp.float32)))

    def on_chips(shape, dtype, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    params = jax.tree.map(lambda leaf: on_chips(leaf.shape, leaf.dtype), params)
    ids = on_chips((B, S), jnp.int32, "data")
    x_BSD = on_chips((B, S, D), jnp.bfloat16, "data")
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return gradient.lower(params, x_BSD, ids, ids).compile().as_text()


def kernel_calls(text: str) -> int:
    return text.count('custom_call_target="tpu_custom_call"')


def squares(text: str, S: int) -> bool:
    """Whether an array has two dimensions of at least half of S."""
    shapes = (map(int, shape.split(",")) for shape in re.findall(r"(?:f32|bf16)\[([\d,]+)\]", text))
    return any(sum(size >= S // 2 for size in shape) >= 2 for shape in shapes)


@pytest.mark.parametrize(
    ("chip", "mesh"),
    [
        ("v5e", dict(data=2)),
        ("v5e", dict(tensor=2)),
        ("v5p", dict(tensor=2)),
        ("v6e", dict(data=2)),
    ],
)
def test_whole_rows_are_splash_kernels(chip: str, mesh: dict[str, int]):
    text = compiled(chip, **mesh)
    assert kernel_calls(text) == 3  # forward, and the gradients of queries and of keys and values
    assert not squares(text, S)


def test_other_rows_are_blocks():
    assert kernel_calls(compiled("v5e", S=1000, data=2)) == 0
    assert kernel_calls(compiled("v5e", sequence=2)) == 0
