"""Experts that work in a latent width, and experts cut into finer ones."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from moe_jax.config.errors import UserError
from moe_jax.models.counts import count
from moe_jax.models.decoder import DecoderConfig
from moe_jax.models.types import IO
from moe_jax.nn.context import Context
from moe_jax.nn.moe_layer import MoEConfig, fine_grained
from moe_jax.routing import DeepSeekV3, Switch, TopK
from moe_jax.routing.capacity import expert_capacity
from tests.nn.sparse_layer import (
    SEGMENTS,
    B,
    D,
    E,
    F,
    S,
    batch_of,
    float64,
    inputs,
    make,
    swiglu,
)

L = 4


@pytest.mark.parametrize("layout", ["rows", "slots_scatter", "dense"])
def test_latent_layer_token_by_token(layout):
    """Router and shared expert see D columns, the experts L, in float64 from the formula."""
    config = MoEConfig(
        num_experts=E, expert_dim=F, num_shared=1, shared_dim=3, latent_dim=L, layout=layout
    )
    layer, apply = make(config)
    x_BSD = inputs()
    y_BSD, _ = apply(jnp.asarray(x_BSD), batch_of(range(B)), Context(), jnp.int32(0))
    kernel_DE, down_DL, up_LD = float64(layer.router.kernel, layer.latent.down, layer.latent.up)
    experts = float64(layer.experts.w_gate, layer.experts.w_up, layer.experts.w_down)
    shared = float64(layer.shared.w_gate, layer.shared.w_up, layer.shared.w_down)
    assert kernel_DE.shape == (D, E) and experts[0].shape == (E, L, F) and shared[0].shape == (D, 3)
    for b, s in np.ndindex(B, S):
        x_D = x_BSD[b, s].astype(np.float64)
        expected = swiglu(x_D, *shared)
        if SEGMENTS[b, s]:
            best = np.argsort(-(x_D @ kernel_DE))[:2]
            weights = scipy.special.softmax((x_D @ kernel_DE)[best])
            for weight, e in zip(weights, best, strict=True):
                expected += weight * swiglu(x_D @ down_DL, *(w[e] for w in experts)) @ up_LD
        np.testing.assert_allclose(y_BSD[b, s], expected, rtol=1e-4, atol=1e-5)


def test_latent_projections_start_with_their_own_fan_in():
    """x of variance 1 has a latent of variance 1, which `up` hands on."""
    layer, _ = make(MoEConfig(num_experts=2, expert_dim=4, latent_dim=64))
    x = np.random.default_rng(0).normal(size=(4000, D)).astype(np.float32)
    z = x @ np.asarray(layer.latent.down[...])
    assert np.var(z) == pytest.approx(1, rel=0.2)
    assert np.var(z @ np.asarray(layer.latent.up[...])) == pytest.approx(1, rel=0.4)


SMALL = DecoderConfig(
    vocab_size=24, num_layers=3, model_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24
)


def test_counts_of_a_latent_layer_by_hand():
    """Swiglu: 3 L F an expert, 2 D L of projections; F is worth k F L / D + 2 L / 3 columns."""
    plain = MoEConfig(num_experts=8, expert_dim=12)
    latent = dataclasses.replace(plain, latent_dim=4)
    before, after = count(SMALL, plain, IO(length=32)), count(SMALL, latent, IO(length=32))
    assert after.router == before.router
    assert after.total - before.total == 3 * (8 * 3 * (4 - 16) * 12 + 2 * 16 * 4)
    active = 3 * (2 * 3 * (4 - 16) * 12 + 2 * 16 * 4)
    assert after.active - before.active == active
    assert after.matmul_flops - before.matmul_flops == 6 * active
    assert (before.iso_flop_dense_dim, after.iso_flop_dense_dim) == (24, round(24 * 4 / 16 + 8 / 3))


@pytest.mark.parametrize(
    ("moe", "m"),
    [
        (MoEConfig(num_experts=4, expert_dim=12), 3),
        (MoEConfig(num_experts=8, expert_dim=12, router=TopK(k=2), num_shared=2), 4),
        (MoEConfig(num_experts=8, expert_dim=8, router=DeepSeekV3(k=3), latent_dim=4), 2),
    ],
)
def test_finer_experts_cost_the_same_but_for_the_router(moe, m):
    fine = fine_grained(moe, m)
    assert (fine.num_experts, fine.router.k) == (m * moe.num_experts, m * moe.router.k)
    before, after = count(SMALL, moe, IO(length=32)), count(SMALL, fine, IO(length=32))
    columns = after.router - before.router
    assert columns == (m - 1) * before.router > 0
    assert after.total - before.total == after.active - before.active == columns
    assert after.flops_per_token - before.flops_per_token == 6 * columns
    assert after.iso_flop_dense_dim == before.iso_flop_dense_dim

    def slots(moe):
        return moe.num_experts * expert_capacity(64, moe.num_experts, float(moe.router.k), 1.5)

    assert slots(fine) == m * slots(moe)


@pytest.mark.parametrize(
    ("moe", "m", "message"),
    [
        (MoEConfig(expert_dim=10), 4, "10 cannot be cut into 4"),
        (MoEConfig(expert_dim=10), 0, "into 0"),
        (MoEConfig(router=Switch()), 2, "Switch has no k"),
    ],
)
def test_what_cannot_be_cut_is_a_user_error(moe, m, message):
    with pytest.raises(UserError, match=message):
        fine_grained(moe, m)
