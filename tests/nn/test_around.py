"""What stands around the routed experts: formulas in float64, order, costs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.nn.around import AROUND, BaseAround, OutputNorm
from moe_jax.nn.context import Context, TokenBatch
from moe_jax.nn.cost import Cost, Here
from moe_jax.nn.depth import MixtureOfDepths
from moe_jax.nn.moe_layer import MoEConfig, MoELayer
from moe_jax.parallel.mesh import MeshConfig, make_mesh
from moe_jax.routing import DenseMixture
from tests.drawn import some

B, S, D, E, F, L = 2, 3, 8, 3, 5, 4


@dataclass(frozen=True, kw_only=True)
class Shifted(BaseAround):
    """outward(y) = 3 y + 1, inward(x) = 2 x, beside(x) = 5 x."""

    def inward(self, params, x):
        return 2 * x

    def outward(self, params, y):
        return 3 * y + 1

    def beside(self, params, x):
        return 5 * x


def layer_of(**settings):
    """A layer in which every expert sees every token, its parameters in float64, its output."""
    config = MoEConfig(num_experts=E, expert_dim=F, router=DenseMixture(), **settings)
    layer = MoELayer(
        config,
        model_dim=D,
        activation="relu",
        init_scale=1.0,
        mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
        rngs=nnx.Rngs(0),
    )
    x_BSD = np.random.default_rng(0).normal(size=(B, S, D)).astype(np.float32)
    ones = jnp.ones((B, S), jnp.int32)
    batch = TokenBatch.packed(token_BS=ones, segment_BS=ones, row_B=jnp.arange(B, dtype=jnp.int32))
    y_BSD, _ = layer(jnp.asarray(x_BSD), batch, Context(), {}, jnp.int32(0))
    return layer, x_BSD.astype(np.float64), np.asarray(y_BSD, np.float64)


def routed(layer, x_BSD, z_BSL):
    """sum of weight * expert(z), weights from x."""
    kernel, up, down = (
        np.asarray(w[...], np.float64)
        for w in (layer.router.kernel, layer.experts.w_up, layer.experts.w_down)
    )
    logits = x_BSD @ kernel
    weight = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    each = np.stack([np.maximum(z_BSL @ up[e], 0) @ down[e] for e in range(E)], axis=-1)
    return np.sum(each * weight[:, :, None, :], axis=-1)


def normed(y, scale):
    return y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-5) * scale


@pytest.mark.grid
@pytest.mark.parametrize("latent", some([None, L], [L]))
def test_output_norm(latent):
    """Of the routed sum, in the width in which it is there; it starts with a scale of 1."""
    layer, x, y = layer_of(around=OutputNorm(), latent_dim=latent)
    scale = np.asarray(layer.around.scale[...], np.float64)
    np.testing.assert_array_equal(scale, np.ones(latent or D))
    if latent is None:
        wanted = normed(routed(layer, x, x), scale)
    else:
        down, up = (np.asarray(w[...], np.float64) for w in (layer.latent.down, layer.latent.up))
        wanted = normed(routed(layer, x, x @ down), scale) @ up
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.grid
def test_one_in_the_other():
    """Latent experts stand outside of what `around` names, shared ones beside all."""
    layer, x, y = layer_of(around=Shifted(), latent_dim=L, num_shared=1)
    down, up = (np.asarray(w[...], np.float64) for w in (layer.latent.down, layer.latent.up))
    z = x @ down
    inner = 3 * routed(layer, x, 2 * z) + 1 + 5 * z
    w_up, w_down = (
        np.asarray(w[...], np.float64) for w in (layer.shared.w_up, layer.shared.w_down)
    )
    wanted = inner @ up + np.maximum(x @ w_up, 0) @ w_down
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


def test_nothing_is_there_by_default():
    config = MoEConfig()
    assert config.surroundings("relu") == {} and config.width(D) == D
    assert set(AROUND) == {"none", "output_norm"}


def test_costs_of_some():
    """Of a block in which a quarter takes part: attention among them is a sixteenth."""

    def block(tokens):
        return Cost(
            parameters=100, active=80, multiplied=60, attended=7.0 * tokens, router=3, routed=40
        )

    found = MixtureOfDepths(every=2, capacity=0.25).cost(block, D, 16)
    assert found == Cost(
        parameters=100 + D,
        active=20 + D,
        multiplied=15 + D,
        attended=7.0 * 4 / 4,
        router=3 + D,
        routed=10,
    )


@pytest.mark.grid
def test_costs_of_a_layer_are_its_parameters():
    """Whatever stands around: what is counted is what is there."""
    for settings in (
        {},
        dict(around=OutputNorm()),
        dict(latent_dim=L, num_shared=2, shared_dim=3, around=OutputNorm()),
    ):
        layer, _, _ = layer_of(**settings)
        there = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(layer, nnx.Param)))
        cost = layer.config.cost(D, "relu", S)
        assert cost.parameters == there
        shared = dataclasses.replace(layer.config, latent_dim=None, num_shared=0)
        assert cost.routed == E * 2 * layer.config.width(D) * F
        assert shared.cost(D, "relu", S).router == cost.router == D * E
    here = Here(tokens=12, row=S, bytes=2)
    assert OutputNorm().planned(D, here).kept == 12 * D * 2
