"""A small sparse layer for the tests, and its experts in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from flax import nnx

from moe_jax.nn.context import TokenBatch
from moe_jax.nn.moe_layer import MoELayer
from moe_jax.parallel.mesh import MeshConfig, make_mesh

B, S, D, F, E = 3, 8, 6, 5, 4
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 0, 0], [1] * S, [1] * 4 + [2] * 4], np.int32)


def make(config, mesh=None):
    layer = MoELayer(
        config,
        model_dim=D,
        activation="swiglu",
        init_scale=1.0,
        mesh=mesh or make_mesh(MeshConfig(), jax.devices()[:1]),
        rngs=nnx.Rngs(params=jax.random.key(0)),
    )
    graph, params = nnx.split(layer)

    @jax.jit
    def apply(x_BSD, batch, context, number):
        return nnx.merge(graph, params)(x_BSD, batch, context, {}, number)

    return layer, apply


def batch_of(row_B):
    rows = np.asarray(row_B)
    zeros = jnp.zeros((len(rows), S), jnp.int32)
    return TokenBatch(
        token_BS=zeros,
        position_BS=zeros,
        segment_BS=jnp.asarray(SEGMENTS[rows % B]),
        row_B=jnp.asarray(rows, jnp.int32),
    )


def inputs():
    return np.random.default_rng(0).normal(size=(B, S, D)).astype(np.float32)


def swiglu(x_D, gate_DF, up_DF, down_FD):
    gate = x_D @ gate_DF
    return (gate * scipy.special.expit(gate) * (x_D @ up_DF)) @ down_FD


def float64(*weights):
    return [np.asarray(w[...], np.float64) for w in weights]
