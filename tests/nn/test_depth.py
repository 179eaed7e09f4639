"""Mixture of depths: the choice, one block against a loop in float64, gradients, routes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from moe_jax.nn.context import Context
from moe_jax.nn.depth import MixtureOfDepths, choose_tokens
from moe_jax.nn.moe_layer import MoEConfig
from tests.nn.depth_layer import BATCH, POSITIONS, SEGMENTS, B, D, E, F, H, N, S, inputs, make, run
from tests.nn.sparse_layer import swiglu


def float64(weight):
    return np.asarray(weight[...], np.float64)


def norm(x_D):
    return x_D / np.sqrt(np.mean(x_D**2) + 1e-5)


def turned(x_H, position):
    """Rotary positions, pair by pair."""
    out = np.empty(H)
    for i in range(H // 2):
        angle = position * 100.0 ** (-2 * i / H)
        a, b = x_H[i], x_H[i + H // 2]
        out[i] = a * np.cos(angle) - b * np.sin(angle)
        out[i + H // 2] = b * np.cos(angle) + a * np.sin(angle)
    return out


def by_loop(block, x_BSD, c, weight):
    """A walk through the rows: c best valid tokens, causal attention within their segments among
    themselves at their own positions, the dense layer, weight times the sum of both."""
    wq, wk, wv, wo = (float64(getattr(block.attention, name)) for name in ("wq", "wk", "wv", "wo"))
    mlp = [float64(getattr(block.mlp, name)) for name in ("w_gate", "w_up", "w_down")]
    kernel_D = float64(block.router.kernel)[:, 0]
    out = np.array(x_BSD, np.float64)
    for b in range(B):
        x = np.asarray(x_BSD[b], np.float64)
        score = x @ kernel_D
        valid = [s for s in range(S) if SEGMENTS[b, s]]
        chosen = sorted(sorted(valid, key=lambda s: -score[s])[:c])
        for s in chosen:
            seen = [t for t in chosen if t <= s and SEGMENTS[b, t] == SEGMENTS[b, s]]
            attended = np.zeros(D)
            for n in range(N):
                q = turned(norm(x[s]) @ wq[:, n], POSITIONS[b, s])
                keys = [turned(norm(x[t]) @ wk[:, n], POSITIONS[b, t]) for t in seen]
                share = scipy.special.softmax([q @ k / np.sqrt(H) for k in keys])
                values = [norm(x[t]) @ wv[:, n] for t in seen]
                attended += sum(p * v for p, v in zip(share, values, strict=True)) @ wo[n]
            added = attended + swiglu(norm(x[s] + attended), *mlp)
            out[b, s] += weight(score[s]) * added
    return out


@pytest.mark.parametrize("capacity", [0.125, 0.5, 1.0])
@pytest.mark.parametrize("weight", ["linear", "sigmoid"])
def test_block_by_a_loop(capacity, weight):
    block, graph, params = make(MixtureOfDepths(every=1, capacity=capacity, weight=weight))
    x_BSD = inputs()
    y_BSD, report, _ = run(graph, params, x_BSD)
    c = round(capacity * S)
    of_score = {"linear": lambda r: r, "sigmoid": scipy.special.expit}[weight]
    np.testing.assert_allclose(y_BSD, by_loop(block, x_BSD, c, of_score), rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(y_BSD[SEGMENTS == 0], x_BSD[SEGMENTS == 0])  # padding
    valid = (SEGMENTS > 0).sum(1)
    np.testing.assert_array_equal(report.depth.valid, valid)
    np.testing.assert_array_equal(report.depth.chosen, np.minimum(valid, c))
    moved = np.abs(np.asarray(y_BSD) - x_BSD).max(-1) > 0
    np.testing.assert_array_equal(moved.sum(1), np.minimum(valid, c))


def test_full_capacity_and_weight_one_is_the_plain_block():
    """A coordinate that is 1 in all tokens, and a router that reads it."""
    _, graph, params = make(MixtureOfDepths(every=1, capacity=1.0))
    _, plain_graph, _ = make(None)
    params["router"]["kernel"].set_value(jnp.zeros((D, 1)).at[0, 0].set(1.0))
    plain = nnx.State({name: params[name] for name in params if name != "router"})
    x_BSD = inputs()
    x_BSD[:, :, 0] = 1
    y_BSD, report, _ = run(graph, params, x_BSD)
    expected, _, _ = run(plain_graph, plain, x_BSD)
    valid = SEGMENTS > 0
    np.testing.assert_allclose(y_BSD[valid], expected[valid], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(report.depth.weight, valid.sum(1))


def test_gradient_reaches_the_router_as_the_paper_says():
    """d loss / d r_t = <d loss / d y_t, what the block adds>, of chosen tokens alone."""
    _, graph, params = make(MixtureOfDepths(every=1, capacity=0.25))
    x_BSD = inputs()

    def loss(params):
        return jnp.sum(jnp.square(run(graph, params, x_BSD)[0]))

    y = np.asarray(run(graph, params, x_BSD)[0], np.float64)
    kernel_D = float64(params["router"]["kernel"])[:, 0]
    found = np.asarray(jax.grad(loss)(params)["router"]["kernel"][...])[:, 0]
    expected = np.zeros(D)
    for b, s in np.argwhere(np.abs(y - x_BSD).max(-1) > 0):
        x = x_BSD[b, s].astype(np.float64)
        added = (y[b, s] - x) / (x @ kernel_D)
        expected += 2 * y[b, s] @ added * x
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_ties_and_padding():
    scores = jnp.asarray([0.0, 2.0, 0.0, 5.0, 0.0, 2.0])
    valid = jnp.asarray([True, True, True, False, True, True])
    np.testing.assert_array_equal(choose_tokens(scores, valid, 3), [0, 1, 5])
    np.testing.assert_array_equal(choose_tokens(scores, valid, 4), [0, 1, 2, 5])
    np.testing.assert_array_equal(choose_tokens(scores, valid, 6), range(6))
    depth = MixtureOfDepths(every=2, capacity=0.1)
    assert [depth.tokens(S) for S in (1, 10, 30, 31)] == [1, 1, 3, 4]
    assert [layer for layer in range(6) if depth.chooses_in(layer)] == [1, 3, 5]


def test_sparse_layer_inside_routes_the_chosen_alone():
    """Counts and capacity are those of the chosen; the others have no expert in the routes."""
    moe = MoEConfig(num_experts=E, expert_dim=F, capacity_factor=1.0)
    _, graph, params = make(MixtureOfDepths(every=1, capacity=0.5), moe)
    y_BSD, report, _ = run(graph, params, inputs(), capture=True, capacity_factor=1.0)
    chosen = np.abs(np.asarray(y_BSD) - inputs()).max(-1) > 0
    np.testing.assert_array_equal(report.moe.sums.valid, chosen.sum(1))
    assert np.asarray(report.moe.sums.wanted_E).sum() == 2 * chosen.sum()
    np.testing.assert_array_equal(report.moe.traffic.slots, [E * 2] * B)  # 4 tokens, k = 2, E = 4
    routes = report.moe.routes
    assert routes.expert_BSK.shape == (B, S, 2) and routes.prob_BSE.shape == (B, S, E)
    np.testing.assert_array_equal((routes.expert_BSK < E).all(-1), chosen)
    np.testing.assert_array_equal((routes.expert_BSK == routes.unused).all(-1), ~chosen)
    assert not np.asarray(routes.kept_BSK)[~chosen].any()


def test_decoding_is_refused_and_fields_are_checked():
    block, _, _ = make(MixtureOfDepths(every=1))
    with pytest.raises(ValueError, match="later tokens"):
        block(jnp.asarray(inputs()), BATCH, Context(), {}, jnp.int32(1), cache=object())
    broken = MixtureOfDepths(every=-1, capacity=1.5, weight="softmax")
    assert [name for name, _ in broken.check()] == ["every", "weight", "capacity"]
    assert list(dataclasses.replace(broken, every=2, capacity=1.0, weight="sigmoid").check()) == []
