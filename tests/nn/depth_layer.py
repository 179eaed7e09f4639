"""A small block of mixture of depths for the tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_jax.nn.attention import GroupedQuery
from moe_jax.nn.block import Block
from moe_jax.nn.context import Context, TokenBatch
from moe_jax.nn.mixer import RowSizes
from moe_jax.nn.mlp import MLP
from moe_jax.nn.moe_layer import MoELayer
from moe_jax.parallel.mesh import MeshConfig, make_mesh

B, S, D, N, H, F, E = 3, 8, 8, 2, 4, 6, 4
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 0, 0], [1] * S, [1, 1, 0, 0, 0, 0, 0, 0]], np.int32)
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 0, 1], range(S), [0, 1, 0, 1, 2, 3, 4, 5]], np.int32)
BATCH = TokenBatch(
    token_BS=jnp.zeros((B, S), jnp.int32),
    position_BS=jnp.asarray(POSITIONS),
    segment_BS=jnp.asarray(SEGMENTS),
    row_B=jnp.arange(B, dtype=jnp.int32),
)


def make(depth, moe=None):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    sizes = RowSizes(model_dim=D, num_heads=N, num_kv_heads=N, head_dim=H, rope_theta=100.0)
    given = dict(model_dim=D, activation="swiglu", init_scale=1.0)

    def feed_forward(rngs):
        if moe is None:
            return MLP(hidden_dim=F, rngs=rngs, **given)
        return MoELayer(moe, mesh=mesh, rngs=rngs, **given)

    block = Block(
        D,
        mixer=lambda rngs: GroupedQuery().make(sizes, mesh, rngs),
        feed_forward=feed_forward,
        depth=None if depth is None else lambda rngs: depth.make(D, mesh, rngs),
        rngs=nnx.Rngs(params=jax.random.key(0)),
    )
    return block, *nnx.split(block)


def inputs():
    return np.random.default_rng(0).normal(size=(B, S, D)).astype(np.float32)


def run(graph, params, x_BSD, **context):
    @jax.jit
    def apply(params, x_BSD):
        return nnx.merge(graph, params)(x_BSD, BATCH, Context(**context), {}, jnp.int32(1))

    return apply(params, jnp.asarray(x_BSD))
