"""The grouped matmul in plain JAX: a loop over blocks of rows, each with its group's matrix.

Its arithmetic is that of the rows plus at most a part of a block per group that has rows,
whatever the number of groups (see `tiling`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.ops.grouped_matmul.kernels import differentiable
from moe_jax.ops.grouped_matmul.tiling import RowBlock, for_each_block
from moe_jax.ops.grouped_matmul.vma import filled
from moe_jax.ops.precision import accumulator


def dot(a: Array, b: Array, axis_b: int = 0) -> Array:
    """a b, or with axis_b=1 a transpose(b), accumulated in float32 or better."""
    dtype = accumulator(a.dtype)
    dimensions = (((1,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype)


def add_to_group(dw_EKN: Array, new_KN: Array, e: Array, is_first: bool) -> Array:
    """dw with dw_e = new for the first block of a group, += new for further ones."""
    if not is_first:
        new_KN += jax.lax.dynamic_index_in_dim(dw_EKN, e, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(dw_EKN, new_KN, e, axis=0)


def rows_times_matrices(x_RK: Array, w_EKN: Array, sizes_E: Array, transposed: bool) -> Array:
    """y_r = x_r w_e(r), or x_r transpose(w_e(r))."""
    R, N = x_RK.shape[0], w_EKN.shape[1 if transposed else 2]

    def body(block: RowBlock, e: Array, is_first: bool, own: list[Array], y_RN: Array) -> Array:
        return block.store(y_RN, dot(block.read(x_RK), own[0], 1 if transposed else 0))

    return for_each_block(sizes_E, R, [w_EKN], body, filled((R, N), 0, x_RK.dtype, like=x_RK))


def rows_times_rows(x_RK: Array, dy_RN: Array, sizes_E: Array, dtype: jnp.dtype) -> Array:
    """dw_e = sum over the rows r of group e of transpose(x_r) dy_r, summed in float32 or better."""
    (R, K), N, E = x_RK.shape, dy_RN.shape[1], sizes_E.shape[0]
    x_KR = x_RK.T  # once, here: a product with a transposed left side is slower on CPU

    def body(block: RowBlock, e: Array, is_first: bool, own: list[Array], dw_EKN: Array) -> Array:
        dw_KN = dot(block.load_columns(x_KR), block.load(dy_RN))
        return add_to_group(dw_EKN, dw_KN, e, is_first)

    dw_EKN = filled((E, K, N), 0, accumulator(x_RK.dtype), like=x_RK)
    return for_each_block(sizes_E, R, [], body, dw_EKN).astype(dtype)


_blocks = differentiable(rows_times_matrices, rows_times_rows)


def blocks(
    x_RK: Float[Array, "R K"], w_EKN: Float[Array, "E K N"], sizes_E: Int[Array, "E"]
) -> Float[Array, "R N"]:
    """y_r = x_r w_e(r), a block of rows at a time; gradients by loops of the same kind."""
    return _blocks(x_RK, w_EKN, sizes_E)
