"""The grouped matmul by JAX's Pallas kernels for TPU: `gmm` for products of rows, `tgmm` for the
weights' gradient, each at the cost of its rows and at most one tile more per group.

(`jax.lax.ragged_dot` has a kernel of the same kind forward, but its weight gradient is dense: E
times the work.) Off TPU the interpreter runs them, for tests.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm
from jaxtyping import Array, Float, Int

from moe_jax.ops.grouped_matmul.kernels import differentiable, of_kernels, or_interpreted
from moe_jax.ops.grouped_matmul.tiling import own_rows

MIN_ROWS, MAX_ROWS = 128, 512  # of a tile
MAX_BYTES = 2048  # of a tile's row of K or N: operands and accumulator of two steps fit in VMEM


def row_tile(R: int, E: int) -> int:
    """Rows of a tile: the power of two below the mean group, within bounds. A tile that two groups
    share is computed for both."""
    mean = max(R // max(E, 1), 1)
    return min(max(2 ** (mean.bit_length() - 1), MIN_ROWS), MAX_ROWS)


def width_tile(width: int, itemsize: int) -> int:
    """Columns of a tile: all of them, or the largest multiple of 128 that divides them, or the most
    (the kernel masks the last tile)."""
    most = MAX_BYTES // itemsize
    if width <= most:
        return width
    fitting = [tile for tile in range(most, most // 2, -128) if width % tile == 0]
    return fitting[0] if fitting else most


def _rows_times_matrices(x_RK: Array, w: Array, sizes_E: Array, transposed: bool) -> Array:
    """y_r = x_r w_e(r), or x_r transpose(w_e(r)); zeros past the last group."""
    R, K = x_RK.shape
    E, N = w.shape[0], w.shape[1 if transposed else 2]
    itemsize = x_RK.dtype.itemsize
    rows = row_tile(R, E)
    padded = jnp.pad(x_RK, ((0, -R % rows), (0, 0)))

    def kernel(x: Array, w: Array, sizes_E: Array, interpret: bool) -> Array:
        return gmm(
            x,
            w,
            sizes_E,
            preferred_element_type=x.dtype,
            tiling=(rows, width_tile(K, itemsize), width_tile(N, itemsize)),
            transpose_rhs=transposed,
            interpret=interpret,
        )

    y_RN = or_interpreted(("tpu",), kernel, padded, w, sizes_E)[:R]
    return own_rows(y_RN, sizes_E)  # the kernel leaves tiles of no group as they were


def _rows_times_rows(x_RK: Array, dy_RN: Array, sizes_E: Array, dtype: jnp.dtype) -> Array:
    """dw_e = sum over the rows of group e of transpose(x_r) dy_r."""
    (R, K), N, E = x_RK.shape, dy_RN.shape[1], sizes_E.shape[0]
    itemsize = x_RK.dtype.itemsize
    rows = row_tile(R, E)
    x, dy = (jnp.pad(a, ((0, -R % rows), (0, 0))) for a in (x_RK, dy_RN))

    def kernel(x_KR: Array, dy: Array, sizes_E: Array, interpret: bool) -> Array:
        return tgmm(
            x_KR,
            dy,
            sizes_E,
            preferred_element_type=dtype,
            tiling=(rows, width_tile(K, itemsize), width_tile(N, itemsize)),
            interpret=interpret,
        )

    dw_EKN = or_interpreted(("tpu",), kernel, x.T, dy, sizes_E)
    return jnp.where((sizes_E > 0)[:, None, None], dw_EKN, 0)


_megablox = differentiable(_rows_times_matrices, _rows_times_rows)


def megablox(
    x_RK: Float[Array, "R K"], w_EKN: Float[Array, "E K N"], sizes_E: Int[Array, "E"]
) -> Float[Array, "R N"]:
    """y_r = x_r w_e(r) on TPU. float32 and bfloat16; float32 accumulation."""
    return of_kernels("megablox", _megablox, x_RK, w_EKN, sizes_E)
