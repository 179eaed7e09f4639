"""The grouped matmul as its definition says it. Costs rows x groups: for tests only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.ops.precision import accumulator


def membership(sizes_E: Int[Array, "E"], R: int) -> Bool[Array, "E {R}"]:
    """Whether row r belongs to group e; rows past sum(sizes) belong to none."""
    end_E = jnp.cumsum(sizes_E)
    row_1R = jnp.arange(R, dtype=sizes_E.dtype)[None, :]
    return (row_1R >= (end_E - sizes_E)[:, None]) & (row_1R < end_E[:, None])


def reference(
    x_RK: Float[Array, "R K"], w_EKN: Float[Array, "E K N"], sizes_E: Int[Array, "E"]
) -> Float[Array, "R N"]:
    """y_r = sum over e of [row r is in group e] x_r w_e, in float32 or better."""
    dtype = accumulator(x_RK.dtype)
    member_ER = membership(sizes_E, x_RK.shape[0])
    x_ERK = jnp.where(member_ER[..., None], x_RK.astype(dtype)[None], 0)
    y_RN = jnp.einsum(
        "ERK,EKN->RN", x_ERK, w_EKN.astype(dtype), precision=jax.lax.Precision.HIGHEST
    )
    # Masked here too, so that gradients of rows of no group have no effect.
    return jnp.where(jnp.any(member_ER, axis=0)[:, None], y_RN, 0).astype(x_RK.dtype)
