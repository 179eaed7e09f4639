"""Moving rows by index, with gradients that are gathers too.

The gradient of a gather is a scatter-add, which is slow (CPU, TPU) or not deterministic (GPU).
Where the inverse index is known, the gradient can be a gather as well. Index M (one past the end)
means "nowhere": it reads zeros.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from moe_jax.ops.precision import accumulator, upcast


def _no_gradient(index: Array) -> np.ndarray:
    return np.zeros(index.shape, jax.dtypes.float0)


@jax.custom_vjp
def take_or_zero(x_ND: Float[Array, "N D"], index: Int[Array, "*M"]) -> Float[Array, "*M D"]:
    """x[index], and zeros where the index is N or more. The gradient of a row that is read more
    than once is summed in float32."""
    return x_ND.at[index].get(mode="fill", fill_value=0)


def _take_fwd(x_ND, index):
    return take_or_zero(x_ND, index), (jnp.zeros((x_ND.shape[0], 0), x_ND.dtype), index)


def _take_bwd(residuals, dy):
    like_N, index = residuals
    dx_ND = jnp.zeros((like_N.shape[0], dy.shape[-1]), accumulator(dy.dtype))
    dx_ND = dx_ND.at[index].add(upcast(dy), mode="drop")
    return dx_ND.astype(like_N.dtype), _no_gradient(index)


take_or_zero.defvjp(_take_fwd, _take_bwd)


@jax.custom_vjp
def gather_rows(
    x_ND: Float[Array, "N D"], index_M: Int[Array, "M"], places_NK: Int[Array, "N K"]
) -> Float[Array, "M D"]:
    """y_m = x[index_m]; 0 where index_m = N.

    places_NK: for each row of x its K places in y (M: none), so that the gradient is
    dx_n = sum_k dy[places_nk]. It must be the inverse of index_M.
    """
    return take_or_zero(x_ND, index_M)


def _gather_rows_fwd(x_ND, index_M, places_NK):
    return take_or_zero(x_ND, index_M), (index_M, places_NK)


def _gather_rows_bwd(residuals, dy_MD):
    index_M, places_NK = residuals
    dx_NKD = take_or_zero(dy_MD, places_NK)
    dx_ND = jnp.sum(dx_NKD.astype(jnp.float32), axis=1).astype(dy_MD.dtype)
    return dx_ND, _no_gradient(index_M), _no_gradient(places_NK)


gather_rows.defvjp(_gather_rows_fwd, _gather_rows_bwd)


@jax.custom_vjp
def combine_rows(
    y_MD: Float[Array, "M D"],
    weight_TK: Float[Array, "T K"],
    place_TK: Int[Array, "T K"],
    row_M: Int[Array, "M"],
) -> Float[Array, "T D"]:
    """out_t = sum_k weight_tk * y[place_tk]; a place of M contributes 0. Float32 accumulation.

    row_M: for each row of y the flat index t * K + k that reads it (T * K: none), the inverse of
    place_TK, so that dy_m = weight[row_m] * dout[row_m // K] is a gather.
    """
    return _combine(y_MD, weight_TK, place_TK)


def _combine(y_MD, weight_TK, place_TK):
    rows_TKD = take_or_zero(y_MD, place_TK).astype(jnp.float32)
    return jnp.sum(rows_TKD * weight_TK[..., None], axis=1).astype(y_MD.dtype)


def _combine_rows_fwd(y_MD, weight_TK, place_TK, row_M):
    return _combine(y_MD, weight_TK, place_TK), (y_MD, weight_TK, place_TK, row_M)


def _combine_rows_bwd(residuals, dout_TD):
    y_MD, weight_TK, place_TK, row_M = residuals
    K = weight_TK.shape[1]
    dout_TD = dout_TD.astype(jnp.float32)
    dout_MD = take_or_zero(dout_TD, row_M // K)
    weight_M = weight_TK.reshape(-1).at[row_M].get(mode="fill", fill_value=0)
    dy_MD = (dout_MD * weight_M[:, None]).astype(y_MD.dtype)
    # <dout_t, y[place_tk]> is computed once for each row of y; only that number is gathered.
    dot_M = jnp.sum(dout_MD * y_MD.astype(jnp.float32), axis=1)
    dweight_TK = dot_M.at[place_TK].get(mode="fill", fill_value=0)
    return dy_MD, dweight_TK, _no_gradient(place_TK), _no_gradient(row_M)


combine_rows.defvjp(_combine_rows_fwd, _combine_rows_bwd)


def invert_index(index_R: Int[Array, "R"], M: int) -> Int[Array, "{M}"]:
    """inverse[index_r] = r for an index of distinct values; entries that no r reaches are R."""
    R = index_R.shape[0]
    rows_R = jnp.arange(R, dtype=jnp.int32)
    empty_M = jnp.full((M,), R, jnp.int32)
    return empty_M.at[index_R].set(rows_R, mode="drop", unique_indices=True)
