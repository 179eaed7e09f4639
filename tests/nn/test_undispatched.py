"""A layer with undispatched experts: equals a walk through tokens and experts, on any mesh."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from moe_jax.nn.context import Context, TokenBatch
from moe_jax.nn.moe_layer import MoEConfig, MoELayer
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing.token_choice.moe_plus_plus import MoEPlusPlus

B, S, D, F, E = 8, 8, 8, 6, 4
SEGMENTS = np.ones((B, S), np.int32)
SEGMENTS[0, 5:] = 0
SEGMENTS[3] = 0
CONFIG = MoEConfig(
    num_experts=E,
    expert_dim=F,
    router=MoEPlusPlus(),
    receive_factor=8.0,
    matmul="reference",
)
ONE, EXPERT = MeshConfig(data=1), MeshConfig(data=2, expert=4)


def layer_of(config, mesh_config):
    mesh = make_mesh(mesh_config, jax.devices()[:1] if mesh_config is ONE else jax.devices())
    layer = MoELayer(
        config,
        model_dim=D,
        activation="swiglu",
        init_scale=1.0,
        mesh=mesh,
        rngs=nnx.Rngs(params=jax.random.key(0)),
    )
    graph, params = nnx.split(layer)
    context = Context(train=True, capacity_factor=config.capacity_factor)
    zeros = jnp.zeros((B, S), jnp.int32)
    batch = TokenBatch(
        token_BS=zeros,
        position_BS=zeros,
        segment_BS=jnp.asarray(SEGMENTS),
        row_B=jnp.arange(B, dtype=jnp.int32),
    )

    @jax.jit
    def apply(params, x_BSD):
        return nnx.merge(graph, params)(x_BSD, batch, context, {}, jnp.int32(0))

    return layer, params, apply


def hidden(seed=0):
    return np.random.default_rng(seed).normal(size=(B, S, D)).astype(np.float32)


def float64(*weights):
    return [np.asarray(w[...], np.float64) for w in weights]


def by_hand(layer, x_BSD, capacity=None):
    """The layer token by token in float64. With a capacity: tokens of a row in their order."""
    kernel, mix, constant = float64(layer.router.kernel, layer.router.mix, layer.router.constant)
    gate, up, down = float64(layer.experts.w_gate, layer.experts.w_up, layer.experts.w_down)
    y_BSD, lost, undispatched = np.zeros(x_BSD.shape), 0, 0
    for b in range(B):
        taken_E = np.zeros(E, int)
        for s in np.flatnonzero(SEGMENTS[b]):
            x_D = x_BSD[b, s].astype(np.float64)
            q_N = scipy.special.softmax(x_D @ kernel)
            served = False
            for n in np.argsort(-q_N)[:2]:
                if n < E:
                    taken_E[n] += 1
                    if capacity is not None and taken_E[n] > capacity:
                        continue
                    hidden_F = x_D @ gate[n]
                    hidden_F = hidden_F * scipy.special.expit(hidden_F) * (x_D @ up[n])
                    output_D = hidden_F @ down[n]
                elif n == E:  # zero
                    output_D = np.zeros(D)
                elif n == E + 1:  # copy
                    output_D = x_D
                else:
                    a1, a2 = scipy.special.softmax(x_D @ mix[n - E - 2])
                    output_D = a1 * x_D + a2 * constant[n - E - 2]
                served = True
                undispatched += n >= E
                y_BSD[b, s] += q_N[n] * output_D
            lost += not served
    return y_BSD, lost, undispatched


@pytest.mark.parametrize("mesh", [ONE, EXPERT], ids=["one device", "expert 4"])
@pytest.mark.parametrize(
    ("layout", "capacity_factor"), [("rows", None), ("rows", 0.5), ("slots_scatter", 0.5)]
)
def test_layer_is_matrix_experts_and_those_at_home(mesh, layout, capacity_factor):
    config = dataclasses.replace(CONFIG, layout=layout, capacity_factor=capacity_factor)
    layer, params, apply = layer_of(config, mesh)
    x_BSD = hidden()
    y_BSD, report = apply(params, jnp.asarray(x_BSD))
    # ceil(8 tokens * 2 * 0.75 * 4 / (0.75 * 4 + 4) matrix experts each * 0.5 / 4) = 1
    capacity = None if capacity_factor is None else 1
    expected_BSD, lost, undispatched = by_hand(layer, x_BSD, capacity)
    np.testing.assert_allclose(y_BSD, expected_BSD, rtol=1e-4, atol=1e-5)
    assert np.all(np.asarray(y_BSD)[SEGMENTS == 0] == 0)
    assert undispatched > 20
    traffic = report.traffic
    assert int(traffic.dropped_tokens.sum()) == lost
    assert int(traffic.overflow.sum()) == 0
    if capacity is not None:
        # Tokens that were dropped by all their matrix experts, but not by an undispatched one.
        assert int(traffic.dropped.sum()) > lost > 0
    valid = int((SEGMENTS > 0).sum())
    assert int(report.sums.wanted_E.sum()) == 2 * valid - undispatched


def test_padding_is_inert():
    _, params, apply = layer_of(CONFIG, ONE)
    x_BSD = hidden()
    dirty = np.where(SEGMENTS[:, :, None] > 0, x_BSD, np.float32(1e4))
    (clean, report), (other, other_report) = (apply(params, jnp.asarray(x)) for x in (x_BSD, dirty))
    np.testing.assert_array_equal(clean, other)
    for a, b in zip(jax.tree.leaves(report.sums), jax.tree.leaves(other_report.sums), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.grid
def test_gradients_do_not_depend_on_the_mesh():
    """Of every parameter, those of the constant experts among them, and of the input."""
    config = dataclasses.replace(CONFIG, capacity_factor=1.0)
    weigh_BSD = jnp.asarray(hidden(5))
    found = {}
    for mesh in (ONE, EXPERT):
        _, params, apply = layer_of(config, mesh)

        def loss(params, x_BSD, apply=apply):
            y_BSD, report = apply(params, x_BSD)
            whole = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), report.sums)
            return jnp.sum(y_BSD * weigh_BSD) + config.router.losses(whole)["balance"]

        gradient = jax.grad(loss, argnums=(0, 1))(params, jnp.asarray(hidden()))
        found[mesh] = jax.tree.map(np.asarray, jax.tree.leaves(gradient))
    for leaf, other in zip(found[ONE], found[EXPERT], strict=True):
        assert np.abs(leaf).max() > 1e-3
        np.testing.assert_allclose(other, leaf, rtol=1e-4, atol=1e-5)
