"""The grouped matmul in plain JAX: a loop over blocks of rows, each with its group's matrix.

The loop runs sum over e of ceil(sizes_e / B) times: the arithmetic is that of the rows plus at
most a part of a block per group, whatever the number of groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of B rows, none across groups. Rows start..start+B; those in begin..end count.

    start never exceeds R - B, so that a block can be sliced.
    """

    group_b: Array
    start_b: Array
    begin_b: Array
    end_b: Array
    count: Array


def plan_blocks(sizes_E: Int[Array, "E"], R: int, B: int) -> Blocks:
    """The first `count` blocks cover all rows of all groups."""
    E = sizes_E.shape[0]
    blocks_E = (sizes_E + (B - 1)) // B
    last_E = jnp.cumsum(blocks_E)
    end_E = jnp.cumsum(sizes_E)
    b = jnp.arange(R // B + E, dtype=sizes_E.dtype)
    group_b = jnp.minimum(jnp.searchsorted(last_E, b, side="right"), E - 1).astype(sizes_E.dtype)
    begin_b = (end_E - sizes_E)[group_b] + (b - (last_E - blocks_E)[group_b]) * B
    return Blocks(
        group_b=group_b,
        start_b=jnp.clip(begin_b, 0, R - B),
        begin_b=begin_b,
        end_b=jnp.minimum(begin_b + B, end_E[group_b]),
        count=last_E[-1],
    )


def block_rows(R: int, E: int) -> int:
    """Rows of a block: about the rows of a group, between 32 and 256."""
    B = 32
    while B < 256 and B < R / E:
        B *= 2
    return min(B, R)


def _slice(x_RK: Array, start: Array, B: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x_RK, start, B, axis=0)


def _inside(blocks: Blocks, b: Array, B: int) -> Array:
    row_B = blocks.start_b[b] + jnp.arange(B, dtype=blocks.start_b.dtype)
    return ((row_B >= blocks.begin_b[b]) & (row_B < blocks.end_b[b]))[:, None]


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    return jax.lax.dot_general(
        a, b, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=dtype
    )


def _rows_times_matrices(x_RK: Array, w_EKN: Array, sizes_E: Array, contract: int) -> Array:
    """y_r = x_r w_e(r), or with contract=2 x_r transpose(w_e(r))."""
    R = x_RK.shape[0]
    B = block_rows(R, sizes_E.shape[0])
    blocks = plan_blocks(sizes_E, R, B)

    def body(b: Array, y_RN: Array) -> Array:
        w_KN = jax.lax.dynamic_index_in_dim(w_EKN, blocks.group_b[b], 0, keepdims=False)
        start = blocks.start_b[b]
        y_BN = _dot(_slice(x_RK, start, B), w_KN, (1, contract - 1)).astype(y_RN.dtype)
        y_BN = jnp.where(_inside(blocks, b, B), y_BN, _slice(y_RN, start, B))
        return jax.lax.dynamic_update_slice_in_dim(y_RN, y_BN, start, axis=0)

    y_RN = _zeros((R, w_EKN.shape[3 - contract]), x_RK.dtype, x_RK)
    return jax.lax.fori_loop(0, blocks.count, body, y_RN)


def _rows_times_rows(x_RK: Array, dy_RN: Array, sizes_E: Array) -> Array:
    """dw_e = sum over the rows r of group e of transpose(x_r) dy_r."""
    R, K = x_RK.shape
    E, N = sizes_E.shape[0], dy_RN.shape[1]
    B = block_rows(R, E)
    blocks = plan_blocks(sizes_E, R, B)

    def body(b: Array, dw_EKN: Array) -> Array:
        start, group = blocks.start_b[b], blocks.group_b[b]
        inside_B1 = _inside(blocks, b, B)
        x_BK = jnp.where(inside_B1, _slice(x_RK, start, B), 0)
        dy_BN = jnp.where(inside_B1, _slice(dy_RN, start, B), 0)
        dw_KN = _dot(x_BK, dy_BN, (0, 0))
        dw_KN += jax.lax.dynamic_index_in_dim(dw_EKN, group, 0, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(dw_EKN, dw_KN, group, 0)

    dw_EKN = _zeros((E, K, N), jnp.promote_types(x_RK.dtype, jnp.float32), x_RK)
    return jax.lax.fori_loop(0, blocks.count, body, dw_EKN)


def _varying(x: Array) -> frozenset[str]:
    """The axes of a `shard_map` along which x differs between devices."""
    return frozenset(jax.typeof(x).manual_axis_type.varying)


def _vary(x: Array, axes: frozenset[str]) -> Array:
    missing = tuple(axes - _varying(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _zeros(shape: tuple[int, ...], dtype: jnp.dtype, like: Array) -> Array:
    """Zeros that vary over the mesh axes that `like` varies over, as a loop's carry must."""
    return _vary(jnp.zeros(shape, dtype), _varying(like))


def _same_axes(*arrays: Array) -> list[Array]:
    """All arrays varying over the mesh axes of any of them (inside a shard_map that checks).

    Done outside the custom gradients, so that the gradient of an array that varies over fewer
    axes is summed over the others.
    """
    axes = frozenset().union(*map(_varying, arrays))
    return [_vary(x, axes) for x in arrays]


@jax.custom_vjp
def _blocks(x_RK: Array, w_EKN: Array, sizes_E: Array) -> Array:
    return _rows_times_matrices(x_RK, w_EKN, sizes_E, contract=1)


def _forward(x_RK: Array, w_EKN: Array, sizes_E: Array) -> tuple[Array, tuple[Array, ...]]:
    return _blocks(x_RK, w_EKN, sizes_E), (x_RK, w_EKN, sizes_E)


def _backward(residuals: tuple[Array, ...], dy_RN: Array) -> tuple[Array, Array, np.ndarray]:
    x_RK, w_EKN, sizes_E = residuals
    dx_RK = _rows_times_matrices(dy_RN, w_EKN, sizes_E, contract=2)
    dw_EKN = _rows_times_rows(x_RK, dy_RN, sizes_E).astype(w_EKN.dtype)
    return dx_RK, dw_EKN, np.zeros(sizes_E.shape, jax.dtypes.float0)


_blocks.defvjp(_forward, _backward)


def blocks(
    x_RK: Float[Array, "R K"], w_EKN: Float[Array, "E K N"], sizes_E: Int[Array, "E"]
) -> Float[Array, "R N"]:
    """y_r = x_r w_e(r), a block of rows at a time; gradients by loops of the same kind."""
    return _blocks(*_same_axes(x_RK, w_EKN, sizes_E))
