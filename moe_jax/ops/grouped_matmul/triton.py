"""The grouped matmul as two Pallas kernels for GPUs (lowered by Triton).

Forward and the gradient of the rows: a program computes a tile of rows of one group times a tile of
columns. Tiles start where their group starts, so that no two of them share a row: R / rows + E + 1
tiles cover any sizes, and those that are not needed end at once. The gradient of the matrices: a
program owns a tile of one group's matrix and goes through the group's rows, so that sums come in a
fixed order. Off the GPU the interpreter runs them, for tests.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from moe_jax.ops.grouped_matmul.kernels import differentiable, of_kernels, or_interpreted

GPUS = ("cuda", "rocm")
MAX_ELEMENTS = 2**31  # the kernels count in int32
NEIGHBOURS = 8  # tiles of rows that run together for each tile of columns: they share a matrix


@dataclass(frozen=True)
class Tiles:
    """Sizes of tiles: rows (or the first dimension of a result), columns, and the part of the
    contraction that is loaded at once; powers of two, 16 or more."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @classmethod
    def of(cls, rows: int, columns: int, depth: int, itemsize: int) -> Tiles:
        """For a product (rows, depth) x (depth, columns) of this many a group."""

        def fitting(size: int, most: int) -> int:
            return min(max(16, 1 << (size - 1).bit_length()), most)

        m, n = fitting(rows, 128), fitting(columns, 128)
        k = fitting(depth, 128 // itemsize)
        return cls(m, n, k, warps=8 if m * n >= 128 * 128 else 4, stages=3)

    @property
    def params(self) -> plgpu.CompilerParams:
        return plgpu.CompilerParams(num_warps=self.warps, num_stages=self.stages)


def _dot(a: Array, b: Array, trans_a: bool = False) -> Array:
    # Float32 means float32, not TF32.
    return plgpu.dot(a, b, trans_a=trans_a, allow_tf32=False)


def row_tiles(sizes_E: Int[Array, "E"], R: int, rows: int) -> Int[Array, "3 T"]:
    """Group, first row and end of every tile; rows of no group are those of a group E."""
    E = sizes_E.shape[0]
    rest_1 = R - jnp.sum(sizes_E, dtype=jnp.int32, keepdims=True)
    sizes_G = jnp.concatenate([sizes_E, rest_1])
    end_G = jnp.cumsum(sizes_G)
    last_G = jnp.cumsum((sizes_G + rows - 1) // rows)  # the tiles up to a group's last
    T = NEIGHBOURS * (-(-(R // rows + E + 1) // NEIGHBOURS))
    tile_T = jnp.arange(T, dtype=jnp.int32)
    group_T = jnp.sum(tile_T[:, None] >= last_G[None, :], axis=1, dtype=jnp.int32)
    own_T = jnp.minimum(group_T, E)
    before_T = last_G[own_T] - (sizes_G[own_T] + rows - 1) // rows
    start_T = end_G[own_T] - sizes_G[own_T] + (tile_T - before_T) * rows
    end_T = jnp.where(group_T <= E, end_G[own_T], start_T)  # beyond the last tile: no rows
    return jnp.stack([own_T, start_T, end_T])


Ref = Any  # an array in the GPU's memory, read and written in place


def _rows_kernel(
    tile_ref: Ref, x_ref: Ref, w_ref: Ref, y_ref: Ref, *, tiles: Tiles, transposed: bool
) -> None:
    """A tile of y: rows of x times columns of the group's matrix (its rows, if transposed)."""
    K, E = x_ref.shape[1], w_ref.shape[0]
    N = y_ref.shape[1]
    across = pl.cdiv(N, tiles.columns)
    index = pl.program_id(0)
    t = index // (NEIGHBOURS * across) * NEIGHBOURS + index % NEIGHBOURS
    n = index % (NEIGHBOURS * across) // NEIGHBOURS
    e, start, end = tile_ref[0, t], tile_ref[1, t], tile_ref[2, t]

    row_m = start + jnp.arange(tiles.rows)
    column_n = n * tiles.columns + jnp.arange(tiles.columns)
    live_m, live_n = row_m < end, column_n < N
    of_group = jnp.minimum(e, E - 1)

    def step(i: Array, sum_mn: Array) -> Array:
        depth_k = i * tiles.depth + jnp.arange(tiles.depth)
        live_k = depth_k < K
        x_mk = plgpu.load(
            x_ref.at[row_m[:, None], depth_k[None, :]],
            mask=live_m[:, None] & live_k[None, :],
            other=0.0,
        )
        if transposed:
            w_kn = plgpu.load(
                w_ref.at[of_group, column_n[None, :], depth_k[:, None]],
                mask=live_k[:, None] & live_n[None, :],
                other=0.0,
            )
        else:
            w_kn = plgpu.load(
                w_ref.at[of_group, depth_k[:, None], column_n[None, :]],
                mask=live_k[:, None] & live_n[None, :],
                other=0.0,
            )
        return sum_mn + _dot(x_mk, w_kn)

    whole = jnp.int32(pl.cdiv(K, tiles.depth))
    steps = jnp.where((e < E) & (start < end), whole, jnp.int32(0))
    sum_mn = jnp.zeros((tiles.rows, tiles.columns), jnp.float32)
    sum_mn = jax.lax.fori_loop(jnp.int32(0), steps, step, sum_mn)
    plgpu.store(
        y_ref.at[row_m[:, None], column_n[None, :]],
        sum_mn.astype(y_ref.dtype),
        mask=live_m[:, None] & live_n[None, :],
    )


def _rows_times_matrices(x_RK: Array, w: Array, sizes_E: Array, transposed: bool) -> Array:
    """y_r = x_r w_e(r), or x_r transpose(w_e(r)); zeros for rows of no group."""
    (R, K), E = x_RK.shape, w.shape[0]
    N = w.shape[1] if transposed else w.shape[2]
    tiles = Tiles.of(-(-R // E), N, K, x_RK.dtype.itemsize)
    tile_3T = row_tiles(sizes_E, R, tiles.rows)

    def kernel(tile_3T: Array, x: Array, w: Array, interpret: bool) -> Array:
        return pl.pallas_call(
            functools.partial(_rows_kernel, tiles=tiles, transposed=transposed),
            out_shape=jax.ShapeDtypeStruct((R, N), x.dtype),
            grid=(tile_3T.shape[1] * pl.cdiv(N, tiles.columns),),
            compiler_params=tiles.params,
            interpret=interpret,
            name="grouped_rows",
        )(tile_3T, x, w)

    return or_interpreted(GPUS, kernel, tile_3T, x_RK, w)


def _matrices_kernel(span_ref: Ref, x_ref: Ref, dy_ref: Ref, dw_ref: Ref, *, tiles: Tiles) -> None:
    """A tile of a group's dw: the sum over the group's rows of transpose(x) dy."""
    K, N = dw_ref.shape[1:]
    e = pl.program_id(2)
    start, end = span_ref[0, e], span_ref[1, e]
    k_m = pl.program_id(0) * tiles.rows + jnp.arange(tiles.rows)
    n_n = pl.program_id(1) * tiles.columns + jnp.arange(tiles.columns)
    live_m, live_n = k_m < K, n_n < N

    def step(i: Array, sum_mn: Array) -> Array:
        row_r = start + i * tiles.depth + jnp.arange(tiles.depth)
        live_r = row_r < end
        x_rm = plgpu.load(
            x_ref.at[row_r[:, None], k_m[None, :]],
            mask=live_r[:, None] & live_m[None, :],
            other=0.0,
        )
        dy_rn = plgpu.load(
            dy_ref.at[row_r[:, None], n_n[None, :]],
            mask=live_r[:, None] & live_n[None, :],
            other=0.0,
        )
        return sum_mn + _dot(x_rm, dy_rn, trans_a=True)

    steps = pl.cdiv(end - start, tiles.depth)
    sum_mn = jnp.zeros((tiles.rows, tiles.columns), jnp.float32)
    sum_mn = jax.lax.fori_loop(jnp.int32(0), steps, step, sum_mn)
    plgpu.store(
        dw_ref.at[e, k_m[:, None], n_n[None, :]],
        sum_mn.astype(dw_ref.dtype),
        mask=live_m[:, None] & live_n[None, :],
    )


def _rows_times_rows(x_RK: Array, dy_RN: Array, sizes_E: Array, dtype: jnp.dtype) -> Array:
    """dw_e = sum over the rows of group e of transpose(x_r) dy_r; zeros for an empty group."""
    (R, K), N, E = x_RK.shape, dy_RN.shape[1], sizes_E.shape[0]
    tiles = Tiles.of(K, N, -(-R // E), x_RK.dtype.itemsize)
    end_E = jnp.cumsum(sizes_E)
    span_2E = jnp.stack([end_E - sizes_E, end_E])

    def kernel(span_2E: Array, x: Array, dy: Array, interpret: bool) -> Array:
        return pl.pallas_call(
            functools.partial(_matrices_kernel, tiles=tiles),
            out_shape=jax.ShapeDtypeStruct((E, K, N), dtype),
            grid=(pl.cdiv(K, tiles.rows), pl.cdiv(N, tiles.columns), E),
            compiler_params=tiles.params,
            interpret=interpret,
            name="grouped_matrices",
        )(span_2E, x, dy)

    return or_interpreted(GPUS, kernel, span_2E, x_RK, dy_RN)


_triton = differentiable(_rows_times_matrices, _rows_times_rows)


def triton(
    x_RK: Float[Array, "R K"], w_EKN: Float[Array, "E K N"], sizes_E: Int[Array, "E"]
) -> Float[Array, "R N"]:
    """y_r = x_r w_e(r) on GPU. float32 and bfloat16; float32 accumulation, without TF32.

    ValueError for other types, and for arrays of 2^31 elements or more.
    """
    largest = max(x_RK.size, w_EKN.size, x_RK.shape[0] * w_EKN.shape[2])
    if largest >= MAX_ELEMENTS:
        raise ValueError(f"triton: arrays below 2^31 elements, not {largest} (shard the experts)")
    return of_kernels("triton", _triton, x_RK, w_EKN, sizes_E)
