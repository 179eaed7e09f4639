"""What the backends of kernels share: where they run, and the op made of two of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from moe_jax.ops.grouped_matmul.vma import same_axes

Backend = Callable[[Array, Array, Array], Array]


def or_interpreted(platforms: Sequence[str], kernel: Callable[..., Array], *arrays: Array) -> Array:
    """kernel(*arrays, interpret=False) on these platforms, elsewhere under the interpreter; chosen
    where the program is lowered, so that a CPU host may compile for an absent device."""
    compiled = functools.partial(kernel, interpret=False)
    # Kernels mix types and ranks, which a program of ours may have forbidden.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.lax.platform_dependent(
            *arrays,
            default=functools.partial(kernel, interpret=True),
            **dict.fromkeys(platforms, compiled),
        )


def differentiable(
    rows_times_matrices: Callable[[Array, Array, Array, bool], Array],
    rows_times_rows: Callable[[Array, Array, Array, jnp.dtype], Array],
) -> Backend:
    """y_r = x_r w_e(r) with both gradients, of two products:

    rows_times_matrices(x_RK, w, sizes_E, transposed): x_r w_e(r), or x_r transpose(w_e(r)).
    rows_times_rows(x_RK, dy_RN, sizes_E, dtype): the sums over groups of transpose(x_r) dy_r.
    """

    @jax.custom_vjp
    def product(x_RK: Array, w_EKN: Array, sizes_E: Array) -> Array:
        return rows_times_matrices(x_RK, w_EKN, sizes_E, False)

    def forward(x_RK: Array, w_EKN: Array, sizes_E: Array) -> tuple[Array, tuple[Array, ...]]:
        return product(x_RK, w_EKN, sizes_E), (x_RK, w_EKN, sizes_E)

    def backward(residuals: tuple[Array, ...], dy_RN: Array) -> tuple[Array, Array, np.ndarray]:
        x_RK, w_EKN, sizes_E = residuals
        dx_RK = rows_times_matrices(dy_RN, w_EKN, sizes_E, True)
        dw_EKN = rows_times_rows(x_RK, dy_RN, sizes_E, w_EKN.dtype)
        return dx_RK, dw_EKN, np.zeros(sizes_E.shape, jax.dtypes.float0)

    product.defvjp(forward, backward)
    return lambda x_RK, w_EKN, sizes_E: product(*same_axes(x_RK, w_EKN, sizes_E))


def of_kernels(
    name: str,
    product: Backend,
    x_RK: Float[Array, "R K"],
    w_EKN: Float[Array, "E K N"],
    sizes_E: Int[Array, "E"],
) -> Float[Array, "R N"]:
    """The product of kernels for float32 and bfloat16 (else ValueError), which takes no empty
    array."""
    if x_RK.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"{name}: float32 or bfloat16, not {x_RK.dtype}")
    if x_RK.shape[0] == 0 or w_EKN.size == 0:
        return jnp.zeros((x_RK.shape[0], w_EKN.shape[2]), x_RK.dtype)
    return product(x_RK, w_EKN, sizes_E.astype(jnp.int32))
