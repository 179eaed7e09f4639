"""The three views of the experts' feed-forward against each other and against numpy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from moe_jax.ops.expert_ffn import ACTIVATIONS, FUSED, GATED, ExpertWeights, row_backend
from moe_jax.ops.ffn_batched import Batched, batched_rows

R, D, F, SIZES = 100, 6, 10, (30, 0, 47, 16)
E = len(SIZES)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def experts(activation: str = "swiglu", backend: str = "blocks", dtype=jnp.float32):
    """Matrices as they are initialised, so that outputs and gradients are of size 1."""
    w_gate, w_up, w_down = normal(E, D, F), normal(E, D, F, seed=1), normal(E, F, D, seed=2)
    w_gate, w_up, w_down = w_gate / np.sqrt(D), w_up / np.sqrt(D), w_down / np.sqrt(F)
    return ExpertWeights(
        w_gate_EDF=jnp.asarray(w_gate, dtype) if activation in GATED else None,
        w_up_EDF=jnp.asarray(w_up, dtype),
        w_down_EFD=jnp.asarray(w_down, dtype),
        activation=activation,
        backend=backend,
    )


@jax.jit
def rows_with_gradients(weights: ExpertWeights, x, sizes, dy):
    """y, the gradients of the weights (as ExpertWeights), dx."""
    y, pull_back = jax.vjp(lambda weights, x: weights.rows(x, sizes), weights, x)
    return y, *pull_back(dy)


def assert_close(mine, right, tolerance: float = 2e-5) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), mine, right
    )


def numpy_ffn(activation: str, weights: ExpertWeights, x, e: int) -> np.ndarray:
    """One expert in float64, written from the definitions."""
    functions = {
        "silu": lambda a: a * scipy.special.expit(a),
        "gelu": lambda a: 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))),
        "gelu_exact": lambda a: a * scipy.special.ndtr(a),
        "relu": lambda a: np.maximum(a, 0),
        "relu_squared": lambda a: np.maximum(a, 0) ** 2,
        "glu": scipy.special.expit,
    }
    functions |= {"swiglu": functions["silu"], "geglu": functions["gelu"]}
    functions |= {"reglu": functions["relu"]}
    x, w_up, w_down = (
        np.asarray(a, np.float64) for a in (x, weights.w_up_EDF[e], weights.w_down_EFD[e])
    )
    if weights.w_gate_EDF is None:
        return functions[activation](x @ w_up) @ w_down
    gate = functions[activation](x @ np.asarray(weights.w_gate_EDF[e], np.float64))
    return gate * (x @ w_up) @ w_down


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_by_its_definition(activation: str):
    weights, x_TD = experts(activation), normal(9, D)
    right_TED = np.stack([numpy_ffn(activation, weights, x_TD, e) for e in range(E)], axis=1)
    assert_close(weights.all(jnp.asarray(x_TD)), right_TED)
    x_ECD = jnp.broadcast_to(x_TD, (E, 9, D))
    assert_close(weights.slots(x_ECD), right_TED.swapaxes(0, 1))


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_rows_equal_the_dense_oracle(activation: str):
    """Values and gradients of both ways to compute rows against `all` with a selection."""
    expert_R = np.repeat(range(E), SIZES)
    x, dy, sizes = normal(R, D, seed=3), normal(R, D, seed=4), np.array(SIZES, np.int32)
    own = len(expert_R)

    def selected(weights: ExpertWeights, x):
        y_RED = weights.all(x)
        y_RD = y_RED[jnp.arange(own), expert_R]
        return jnp.concatenate([y_RD, jnp.zeros((R - own, D))])

    weights = experts(activation)
    y, pull_back = jax.vjp(selected, weights, x)
    dweights, dx = pull_back(dy)
    for backend in (*FUSED, "ragged_dot"):
        again = dataclasses.replace(weights, backend=backend)
        y_rows, dweights_rows, dx_rows = rows_with_gradients(again, x, sizes, dy)
        assert_close((y_rows, dx_rows), (y, dx))
        assert_close(jax.tree.leaves(dweights_rows), jax.tree.leaves(dweights))


@pytest.mark.parametrize("fused", FUSED)
def test_any_sizes_give_the_same_as_separate_products(fused: str):
    """The fused forms against three grouped matmuls, on sizes that use every kind of block, with
    and without a batch and a remainder."""
    R, rng = 3000, np.random.default_rng(0)
    x, dy = normal(R, D, seed=3), normal(R, D, seed=4)
    some = ([R, 0, 0, 0], [0, 1, 900, 2099], [850, 700, 745, 700])
    for sizes in (*some, *rng.multinomial(R - 5, [0.25] * 4, size=3)):
        sizes = np.array(sizes, np.int32)
        mine, right = (
            rows_with_gradients(experts(backend=b), x, sizes, dy) for b in (fused, "ragged_dot")
        )
        # Sums of up to 3000 float32 products.
        assert_close(jax.tree.leaves(mine), jax.tree.leaves(right), tolerance=5e-4)


def test_what_auto_stands_for():
    assert row_backend("auto", "tpu", 8192, 64) == "megablox"
    assert row_backend("auto", "cuda", 8192, 64) == row_backend("auto", "gpu", 1, 2) == "triton"
    assert row_backend("auto", "cpu", 8192, 64) == row_backend("auto", None, 8192, 64) == "batched"
    assert row_backend("auto", "cpu", 8200, 64) == row_backend("auto", "cpu", 64, 8) == "blocks"
    assert row_backend("blocks", "tpu", 8192, 64) == "blocks"


def test_where_a_wave_pays():
    """For loads around the mean, with or without a remainder; not where most experts are idle."""
    R = 1024

    def batch(*sizes):
        return Batched.of(jnp.array(sizes, jnp.int32), R, C)

    C = batched_rows(R, 4)
    assert C >= R / 4
    even, remainder, skewed = (
        batch(256, 256, 256, 256),
        batch(300, 241, 242, 241),
        batch(R, 0, 0, 0),
    )
    assert bool(even.pays) and bool(remainder.pays) and not bool(skewed.pays)
    sizes_E, start_E = remainder.remainder()
    assert sizes_E.tolist() == [300 - C, 0, 0, 0] and int(start_E[0]) == C
    row_RK = jnp.arange(1, R + 1, dtype=jnp.float32)[:, None]
    back = remainder.rows(remainder.slots(row_RK))[:, 0]
    in_remainder = (np.arange(R) >= C) & (np.arange(R) < 300)
    assert np.array_equal(back, np.where(in_remainder, 0, row_RK[:, 0]))


@pytest.mark.parametrize("fused", FUSED)
def test_rows_of_no_expert_may_hold_anything(fused: str):
    own, sizes = sum(SIZES), np.array(SIZES, np.int32)
    x, dy = normal(R, D, seed=3), normal(R, D, seed=4)
    clean = rows_with_gradients(experts(backend=fused), x, sizes, dy)
    x[own:], dy[own:] = np.inf, np.nan
    dirty = rows_with_gradients(experts(backend=fused), x, sizes, dy)
    assert not np.any(dirty[0][own:]) and not np.any(dirty[2][own:])
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


@pytest.mark.parametrize("fused", FUSED)
def test_bfloat16_is_as_good_as_its_inputs(fused: str):
    """One rounding of h (here) or of everything before it (elsewhere), then one of y: against
    float64 on the same bfloat16 inputs the error stays within a few units of 2^-8 of the sum."""
    weights = experts(backend=fused, dtype=jnp.bfloat16)
    x = jnp.asarray(normal(R, D, seed=3), jnp.bfloat16)
    sizes = jnp.array(SIZES, jnp.int32)
    y, end = weights.rows(x, sizes), np.cumsum(SIZES)
    assert y.dtype == jnp.bfloat16
    for e, rows in enumerate(map(slice, end - SIZES, end)):
        exact = numpy_ffn("swiglu", weights, x[rows], e)
        error = np.abs(np.asarray(y[rows], np.float64) - exact)
        assert np.all(error <= 2.0**-8 * (np.abs(exact) + np.abs(exact).max(initial=0)))
    gradients = rows_with_gradients(weights, x, sizes, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map_with_the_hidden_width_sharded(check_vma: bool, fused: str):
    """Rows over data, F over tensor: the caller sums over tensor, gradients come out right."""
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    arrays = normal(E, D, 8), normal(E, D, 8, seed=1), normal(E, 8, D, seed=2)
    structure = jax.tree.structure(experts(backend=fused))
    weights = jax.tree.unflatten(structure, map(jnp.asarray, arrays))
    sizes = np.array([SIZES, [0, R, 0, 0]], np.int32)
    x, dy = normal(2 * R, D, seed=3), normal(2 * R, D, seed=4)
    up, down = P(None, None, "tensor"), P(None, "tensor", None)
    specs = jax.tree.unflatten(jax.tree.structure(weights), (up, up, down))
    sharded = jax.shard_map(
        lambda weights, x, sizes: jax.lax.psum(weights.rows(x, sizes[0]), "tensor"),
        mesh=mesh,
        in_specs=(specs, P("data"), P("data")),
        out_specs=P("data"),
        check_vma=check_vma,
    )

    @jax.jit
    def gradients(weights, x):
        return jax.vjp(lambda weights, x: sharded(weights, x, sizes), weights, x)[1](dy)

    dweights, dx = gradients(weights, x)
    halves = [
        rows_with_gradients(weights, x[rows], own, dy[rows])[1:]
        for rows, own in zip((slice(R), slice(R, 2 * R)), sizes, strict=True)
    ]
    assert_close(dx, np.concatenate([half[1] for half in halves]), tolerance=1e-4)
    both = jax.tree.map(lambda a, b: a + b, halves[0][0], halves[1][0])
    assert_close(jax.tree.leaves(dweights), jax.tree.leaves(both), tolerance=1e-4)


@pytest.mark.grid
def test_checkpoint_policies_can_keep_the_hidden_products():
    """The same gradients either way; what is kept need not be computed again."""
    weights, x, sizes = experts(), normal(R, D, seed=3), jnp.array(SIZES, jnp.int32)

    def gradient(*kept: str):
        policy = jax.checkpoint_policies.save_only_these_names(*kept)
        layer = jax.checkpoint(lambda weights, x: weights.rows(x, sizes), policy=policy)
        return jax.jit(jax.grad(lambda weights, x: jnp.sum(jnp.square(layer(weights, x))), (0, 1)))

    def products(function) -> int:
        return str(jax.make_jaxpr(function)(weights, x)).count("dot_general")

    right = jax.grad(lambda weights, x: jnp.sum(jnp.square(weights.rows(x, sizes))), (0, 1))
    recomputed, kept = gradient(), gradient("expert_hidden")
    assert products(right) <= products(kept) < products(recomputed)
    for mine in (recomputed, kept):
        assert_close(*map(jax.tree.leaves, (mine(weights, x), jax.jit(right)(weights, x))))
