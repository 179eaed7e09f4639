"""Rows of a table of parameters by number, as of an embedding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rows_of_table(
    table_VD: Float[Array, "V D"], id_BS: Int[Array, "*n"], dtype: DTypeLike
) -> Float[Array, "*n D"]:
    """table[id] in `dtype`. The gradient adds up each row's tokens in the table's own type.

    A frequent id has thousands of tokens in a batch, and a sum of so many in bfloat16 stands still
    where a term is less than half of its last bit: 4,096 ones give 256.
    """
    return table_VD.astype(dtype)[id_BS]


def _forward(table_VD: Array, id_BS: Array, dtype: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    # The gradient needs only the shape and type of the table.
    like_V = jnp.zeros((table_VD.shape[0], 0), table_VD.dtype)
    return rows_of_table(table_VD, id_BS, dtype), (like_V, id_BS)


def _backward(
    dtype: DTypeLike, residuals: tuple[Array, Array], dx: Array
) -> tuple[Array, np.ndarray]:
    like_V, id_BS = residuals
    zeros_VD = jnp.zeros((like_V.shape[0], dx.shape[-1]), like_V.dtype)
    dtable_VD = zeros_VD.at[id_BS].add(dx.astype(like_V.dtype))
    return dtable_VD, np.zeros(id_BS.shape, jax.dtypes.float0)


rows_of_table.defvjp(_forward, _backward)
