"""Every backend against the definition: values, both gradients, every way of calling it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, PartitionSpec

from moe_jax.ops.expert_ffn import row_backend
from moe_jax.ops.grouped_matmul import BACKENDS, grouped_matmul
from moe_jax.ops.grouped_matmul.tiling import (
    BlockSizes,
    block_sizes,
    cheapest_tiling,
    for_each_block,
)
from moe_jax.ops.grouped_matmul.triton import row_tiles
from moe_jax.parallel.compat import lowering_for_gpu

OTHERS = sorted(set(BACKENDS) - {"reference"})


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def float64(x) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def oracle(x, w, dy, sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y, dx, dw in float64, a group at a time."""
    x, w, dy = map(float64, (x, w, dy))
    y, dx, dw = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(w)
    end = np.cumsum(sizes)
    for e, rows in enumerate(map(slice, end - sizes, end)):
        y[rows], dx[rows], dw[e] = x[rows] @ w[e], dy[rows] @ w[e].T, x[rows].T @ dy[rows]
    return y, dx, dw


def with_gradients(function: Callable) -> Callable:
    """(y, dx, dw) of function(x, w, sizes) for the cotangent dy, compiled."""

    @jax.jit
    def run(x, w, sizes, dy):
        y, pull_back = jax.vjp(lambda x, w: function(x, w, sizes), x, w)
        return y, *pull_back(dy)

    return run


def backend(name: str) -> Callable:
    return lambda x, w, sizes: grouped_matmul(x, w, sizes, backend=name)


def check(run: Callable, R: int, K: int, N: int, many_sizes: list) -> None:
    E = len(many_sizes[0])
    x, w, dy = normal(R, K), normal(E, K, N, seed=1), normal(R, N, seed=2)
    for sizes in many_sizes:
        got = run(x, w, jnp.array(sizes, jnp.int32), dy)
        for name, mine, right in zip(("y", "dx", "dw"), got, oracle(x, w, dy, sizes), strict=True):
            # Sums of at most max(R, K, N) products of normals, in float32.
            np.testing.assert_allclose(
                mine, right, rtol=1e-5, atol=1e-5 * np.sqrt(max(R, K, N)), err_msg=f"{name} {sizes}"
            )


@pytest.mark.parametrize("name", BACKENDS)
def test_every_pattern_of_empty_groups(name: str):
    R, rng = 100, np.random.default_rng(0)
    patterns = []
    for used in itertools.product([0, 1], repeat=4):
        share = np.array(used) * rng.uniform(0.1, 1, 4)
        total = R if any(used) and rng.integers(2) else int(rng.integers(R))
        patterns.append(rng.multinomial(total, share / share.sum()) if any(used) else [0] * 4)
    assert {sum(sizes) == R for sizes in patterns} == {True, False}
    check(with_gradients(backend(name)), R, 7, 5, patterns)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    ("R", "K", "N", "many_sizes"),
    [
        (32, 96, 96, [[1] * 32, [0] * 31 + [32], [2, 0] * 16]),  # widths of no tile
        (1, 3, 4, [[0, 1, 0], [0, 0, 0]]),
        (77, 5, 3, [[77], [76], [1], [0]]),  # one group
        (0, 3, 4, [[0, 0]]),
    ],
)
def test_shapes(name: str, R: int, K: int, N: int, many_sizes: list):
    check(with_gradients(backend(name)), R, K, N, many_sizes)


def test_blocks_of_all_sizes_and_groups_beyond_the_table():
    R, E = 9000, 16
    sizes = block_sizes(R, E)
    beyond = len(cheapest_tiling(sizes))
    edges = [b + d for b in (*sizes.first, *sizes.more) for d in (-1, 0, 1)]
    large = [beyond - 1, 0, beyond, 1, beyond + 1, *[0] * 11]
    one = [0] * 15 + [R]
    rng = np.random.default_rng(0)
    some = [np.minimum(rng.choice(edges, E), 560) for _ in range(3)]
    check(with_gradients(backend("blocks")), R, 3, 2, [large, one, *some])


@pytest.mark.parametrize("name", BACKENDS)
def test_bfloat16_accumulates_in_float32(name: str):
    R, K, N, sizes = 300, 500, 130, np.array([100, 0, 170, 25], np.int32)
    x, w, dy = (
        jnp.asarray(a, jnp.bfloat16)
        for a in (normal(R, K), normal(4, K, N, seed=1), normal(R, N, seed=2))
    )
    got = with_gradients(backend(name))(x, w, sizes, dy)
    right = oracle(x, w, dy, sizes)
    magnitude = oracle(*(np.abs(float64(a)) for a in (x, w, dy)), sizes)
    for mine, exact, sum_of_sizes in zip(got, right, magnitude, strict=True):
        assert mine.dtype == jnp.bfloat16
        # One rounding to 8 bits at the end; the float32 sum of n products is off by at most
        # n 2^-24 of the sum of their sizes. A sum in bfloat16 would round at every step.
        bound = 2.0**-8 * np.abs(exact) + 512 * 2.0**-24 * sum_of_sizes
        assert np.all(np.abs(float64(mine) - exact) <= bound)


@pytest.mark.parametrize("name", BACKENDS)
def test_rows_of_no_group_may_hold_anything(name: str):
    R, sizes = 50, np.array([0, 20, 7], np.int32)
    x, w, dy = normal(R, 4), normal(3, 4, 6, seed=1), normal(R, 6, seed=2)
    x[27:], dy[27:] = np.nan, np.inf
    y, dx, dw = with_gradients(backend(name))(x, w, sizes, dy)
    assert not np.any(y[27:]) and not np.any(dx[27:])
    right = oracle(x[:27], w, dy[:27], sizes)
    for mine, exact in zip((y[:27], dx[:27], dw), right, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_on_a_gpu_all_three_products_are_kernels(dtype):
    """Lowered for an absent GPU; nothing of it is a dense product."""
    R, K, N, E = 512, 256, 128, 8
    of_gpu = row_backend("auto", "gpu", R, E)
    shapes = ((R, K), (E, K, N), (R, N))
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    sizes = jax.ShapeDtypeStruct((E,), jnp.int32)
    kernel = "__gpu$xla.gpu.triton"

    def run(x, w, dy, sizes):
        y, pull_back = jax.vjp(lambda x, w: backend(of_gpu)(x, w, sizes), x, w)
        return y, pull_back(dy)

    with lowering_for_gpu("NVIDIA H200"):
        exported = export.export(
            jax.jit(run),
            platforms=("cuda",),
            disabled_checks=[export.DisabledSafetyCheck.custom_call(kernel)],
        )(*arrays, sizes)
    text = exported.mlir_module()
    assert text.count(kernel) == 3
    assert "stablehlo.dot_general" not in text


def test_row_tiles_cover_every_row_once():
    R, rows, rng = 300, 32, np.random.default_rng(0)
    for sizes in (
        [0, 300, 0],
        [300, 0, 0],
        [1, 2, 3],
        [0, 0, 0],
        *rng.multinomial(290, [0.3] * 3, 5),
    ):
        group_T, start_T, end_T = np.asarray(row_tiles(jnp.asarray(sizes, jnp.int32), R, rows))
        owner_R = np.full(R, -1)
        for group, start, end in zip(group_T, start_T, end_T, strict=True):
            own = slice(start, min(start + rows, end))
            assert np.all(owner_R[own] == -1)
            owner_R[own] = group
        assert owner_R.tolist() == np.repeat(range(4), [*sizes, R - sum(sizes)]).tolist()


def test_finite_differences_in_float64():
    x, w, dy = normal(40, 5), normal(3, 5, 4, seed=1), normal(40, 4, seed=2)
    sizes = np.array([0, 33, 5], np.int32)
    with jax.enable_x64(True):
        x, w, dy = map(jnp.asarray, map(float64, (x, w, dy)))
        run = with_gradients(backend("blocks"))
        y, dx, dw = run(x, w, jnp.asarray(sizes, jnp.int64), dy)
        assert y.dtype == dx.dtype == dw.dtype == jnp.float64
        for step_x, step_w in ((normal(40, 5, seed=3), 0 * w), (0 * x, normal(3, 5, 4, seed=3))):
            step_x, step_w = float64(step_x), float64(step_w)
            ahead, back = (run(x + s * step_x, w + s * step_w, sizes, dy)[0] for s in (0.5, -0.5))
            # Linear in each, so that the central difference is exact for any step.
            slope = jnp.sum(dx * step_x) + jnp.sum(dw * step_w)
            np.testing.assert_allclose(jnp.sum((ahead - back) * dy), slope, rtol=1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_inside_scan_and_checkpoint(name: str):
    R, K, E, L = 60, 6, 3, 3
    x, w = normal(R, K), normal(L, E, K, K, seed=1) / np.sqrt(K)
    sizes = jnp.array([10, 0, 45], jnp.int32)

    def deep(x, w, name):
        layer = jax.checkpoint(
            lambda x, w: (jnp.tanh(grouped_matmul(x, w, sizes, backend=name)), None)
        )
        return jnp.sum(jax.lax.scan(layer, x, w)[0])

    gradients = jax.jit(jax.grad(deep, (0, 1)), static_argnums=2)
    mine, right = gradients(x, w, name), gradients(x, w, "reference")
    for a, b in zip(mine, right, strict=True):
        # Sums of terms of the array's size may cancel: their rounding is of that size.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.max(np.abs(b)))


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map(check_vma: bool):
    """Rows over one axis, width over another, the matrices replicated over the first."""
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    spec = PartitionSpec
    R, K, N, sizes = 120, 6, 8, np.array([[10, 0, 45], [0, 60, 0]], np.int32)
    x, w, dy = normal(R, K), normal(3, K, N, seed=1), normal(R, N, seed=2)

    sharded = jax.shard_map(
        lambda x, w, sizes: grouped_matmul(x, w, sizes[0], backend="blocks"),
        mesh=mesh,
        in_specs=(spec("data"), spec(None, None, "tensor"), spec("data")),
        out_specs=spec("data", "tensor"),
        check_vma=check_vma,
    )
    y, dx, dw = with_gradients(sharded)(x, w, sizes, dy)
    halves = [
        oracle(x[rows], w, dy[rows], own)
        for rows, own in zip((slice(60), slice(60, R)), sizes, strict=True)
    ]
    np.testing.assert_allclose(
        y, np.concatenate([half[0] for half in halves]), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        dx, np.concatenate([half[1] for half in halves]), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(dw, halves[0][2] + halves[1][2], rtol=1e-5, atol=1e-5)


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="no backend 'block'"):
        grouped_matmul(
            jnp.ones((2, 2)), jnp.ones((1, 2, 2)), jnp.array([2], jnp.int32), backend="block"
        )


# --- cost ---


@pytest.mark.parametrize(
    ("R", "E"), [(8192, 8), (8192, 64), (8192, 256), (100, 4), (7, 3), (70000, 2)]
)
def test_covers_hold_their_group_and_no_block_in_vain(R: int, E: int):
    sizes = block_sizes(R, E)
    table = cheapest_tiling(sizes)
    assert not np.any(table[0])
    for n in range(1, len(table)):
        first, more = sizes.first[table[n, 0] - 1], np.repeat(sizes.more, table[n, 1:])
        last = min(more) if len(more) else first  # the loop takes them in falling order
        assert first + sum(more) >= n > first + sum(more) - last


def visited(sizes: np.ndarray, R: int) -> tuple[int, int]:
    """How many blocks the loop visits, and how many rows are in them."""

    def count(block, group, is_first, own, carry):
        return carry + jnp.array([1, block.live_B.shape[0]], jnp.int32)

    start = jnp.zeros(2, jnp.int32)
    run = jax.jit(lambda sizes: for_each_block(sizes, R, [], count, start))
    return tuple(map(int, run(jnp.asarray(sizes, jnp.int32))))


@pytest.mark.parametrize("E", [8, 64, 256])
def test_work_follows_the_rows_not_the_groups(E: int):
    R, rng = 8192, np.random.default_rng(0)
    even = rng.multinomial(R, np.full(E, 1 / E))
    skewed = rng.multinomial(R, rng.dirichlet(np.full(E, 0.3)))
    few = np.zeros(E, int)
    few[:4] = R // 4
    least = sum(block_sizes(R, E).first[:1])
    for sizes in (even, skewed, few):
        blocks, rows = visited(sizes, R)
        used = np.count_nonzero(sizes)
        assert blocks <= 3 * used + R / 256
        assert R <= rows <= 1.25 * R + least * used  # the dense lowering computes E * R


def test_flops_of_the_program_do_not_grow_with_the_groups():
    """XLA counts the body of a loop once: blocks show their largest blocks, all products."""

    def flops(name: str, E: int) -> float:
        R, K, N = 2048, 16, 32
        shapes = [(R, K), (E, K, N), (R, N)]
        x, w, dy = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        sizes = jax.ShapeDtypeStruct((E,), jnp.int32)
        compiled = with_gradients(backend(name)).lower(x, w, sizes, dy).compile()
        return compiled.cost_analysis()["flops"] / (6 * R * K * N)

    assert flops("ragged_dot", 32) > 4 * flops("ragged_dot", 4)
    assert flops("blocks", 32) < 1.5 * flops("blocks", 4)


def test_sizes_on_offer_fit_the_rows():
    for R, E in itertools.product((1, 5, 31, 33, 1000, 10**6), (1, 3, 64)):
        sizes: BlockSizes = block_sizes(R, E)
        assert max(*sizes.first, *sizes.more) <= R
