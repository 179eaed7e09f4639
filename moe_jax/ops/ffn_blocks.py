"""The feed-forward of sorted rows as one loop over blocks of rows, forward and backward.

The same arithmetic as grouped matmuls with an activation between them, with fewer passes over the
rows: a block goes through the whole network while it is in the cache. What is kept for the backward
pass are the products before the activation; the output overwrites a copy of the input, the input's
gradient one of the output's. (experiments/benchmarks/grouped_matmul.py compares the two.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PyTree

from moe_jax.ops.grouped_matmul.blocks import add_to_group, dot
from moe_jax.ops.grouped_matmul.tiling import RowBlock, for_each_block, own_rows
from moe_jax.ops.grouped_matmul.vma import filled, same_axes
from moe_jax.ops.precision import accumulator

TRANSPOSED_FROM = 512  # rows for each expert

Hidden = Callable[..., Array]
Matrices = tuple[Array, ...]
Gradients = tuple[Array, list[Array], Array]  # of x, w_in and w_down


def ffn_blocks(
    hidden: Hidden,
    x_RD: Float[Array, "R D"],
    w_in: tuple[Float[Array, "E D F"], ...],
    w_down_EFD: Float[Array, "E F D"],
    sizes_E: Int[Array, "E"],
    expected: int | None = None,
) -> Float[Array, "R D"]:
    """y_r = hidden(x_r w_1, x_r w_2, ...) w_down with the matrices of row r's expert.

    Args:
      hidden: elementwise, from as many (B, F) arrays as there are in w_in to one.
      x_RD, sizes_E: rows sorted by expert, as in `grouped_matmul`; so are rows past sum(sizes).
      expected: not needed here.

    Products and the activation are in float32 (float64 for float64). The products kept for the
    backward pass have x's dtype and the name "expert_hidden" for `jax.checkpoint` policies.
    """
    return _ffn(hidden, *same_axes(x_RD, w_in, w_down_EFD, sizes_E))


def run_blocks(
    hidden: Hidden, x_RD: Array, w_in: Matrices, w_down_EFD: Array, sizes_E: Array, keep: int
) -> tuple[Array, list[Array]]:
    """The output and the products before the activation, in arrays of `keep` rows (0: none)."""
    R, F = x_RD.shape[0], w_down_EFD.shape[1]

    def body(
        block: RowBlock,
        e: Array,
        is_first: bool,
        own: list[Array],
        carry: tuple[Array, list[Array]],
    ) -> tuple[Array, list[Array]]:
        y_RD, kept = carry
        products = [dot(block.read(y_RD), w_DF) for w_DF in own[:-1]]
        h_BF = hidden(*products).astype(x_RD.dtype)
        kept = [block.store(a_RF, a_BF) for a_RF, a_BF in zip(kept, products, strict=False)]
        return block.store(y_RD, dot(h_BF, own[-1])), kept

    # XLA would share one buffer for equal constants and copy it.
    kept = [filled((keep, F), i, x_RD.dtype, like=x_RD) for i in range(len(w_in) if keep else 0)]
    carry = (own_rows(x_RD, sizes_E), kept)
    return for_each_block(sizes_E, R, [*w_in, w_down_EFD], body, carry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ffn(hidden: Hidden, x_RD: Array, w_in: Matrices, w_down_EFD: Array, sizes_E: Array) -> Array:
    return run_blocks(hidden, x_RD, w_in, w_down_EFD, sizes_E, keep=0)[0]


def _forward(
    hidden: Hidden, x_RD: Array, w_in: Matrices, w_down_EFD: Array, sizes_E: Array
) -> tuple[Array, tuple[PyTree, ...]]:
    y_RD, kept = run_blocks(hidden, x_RD, w_in, w_down_EFD, sizes_E, keep=x_RD.shape[0])
    kept = [checkpoint_name(a_RF, "expert_hidden") for a_RF in kept]
    return y_RD, (x_RD, w_in, w_down_EFD, sizes_E, kept)


def pull_back(
    hidden: Hidden, own: list[Array], products: list[Array], dy_BD: Array
) -> tuple[Array, list[Array], Array]:
    """Of the rows of one expert: what is before its last matrix, and the gradients of its products
    before the activation, in dy's type; the gradient of its input."""
    h_BF, vjp = jax.vjp(hidden, *products)
    d_in = [a_BF.astype(dy_BD.dtype) for a_BF in vjp(dot(dy_BD, own[-1], axis_b=1))]
    terms = [dot(a_BF, w_DF, axis_b=1) for a_BF, w_DF in zip(d_in, own[:-1], strict=True)]
    return h_BF.astype(dy_BD.dtype), d_in, functools.reduce(jnp.add, terms)


def add_products(
    dw_in: list[Array], x_DB: Array, d_in: list[Array], e: Array, is_first: bool
) -> list[Array]:
    """dw of expert e, with transpose(x) d added."""
    return [
        add_to_group(dw_EDF, dot(x_DB, a_BF), e, is_first)
        for dw_EDF, a_BF in zip(dw_in, d_in, strict=True)
    ]


def blocks_gradients(
    hidden: Hidden,
    x_RD: Array,
    w_in: Matrices,
    w_down_EFD: Array,
    sizes_E: Array,
    kept: list[Array],
    dy_RD: Array,
) -> Gradients:
    """Of x, w_in and w_down, the latter in float32 or better."""
    (R, D), (E, F, _) = x_RD.shape, w_down_EFD.shape
    dtype = accumulator(x_RD.dtype)
    # Transposed once, here: a product with a transposed left side is slower on CPU. Of dy that
    # gives the gradient of w_down transposed, which pays where matrices have many rows.
    x_DR, transposed = x_RD.T, R >= TRANSPOSED_FROM * E
    dy_DR = dy_RD.T if transposed else None

    def body(
        block: RowBlock, e: Array, is_first: bool, own: list[Array], carry: Gradients
    ) -> Gradients:
        dx_RD, dw_in, dw_down = carry
        dy_BD = block.load(dx_RD)
        products = [block.load(a_RF).astype(dtype) for a_RF in kept]
        h_BF, d_in, dx_BD = pull_back(hidden, own, products, dy_BD)
        dw_in = add_products(dw_in, block.load_columns(x_DR), d_in, e, is_first)
        dy_DB = None if dy_DR is None else block.load_columns(dy_DR)
        new = dot(h_BF.T, dy_BD) if dy_DB is None else dot(dy_DB, h_BF)
        return block.store(dx_RD, dx_BD), dw_in, add_to_group(dw_down, new, e, is_first)

    dw_in = [filled((E, D, F), 0, dtype, like=x_RD) for _ in w_in]
    dw_down = filled((E, D, F) if transposed else (E, F, D), 0, dtype, like=x_RD)
    carry = (own_rows(dy_RD, sizes_E), dw_in, dw_down)
    dx_RD, dw_in, dw_down = for_each_block(sizes_E, R, [*w_in, w_down_EFD], body, carry)
    return dx_RD, dw_in, dw_down.swapaxes(1, 2) if transposed else dw_down


def cotangents(
    w_in: Matrices,
    w_down_EFD: Array,
    sizes_E: Array,
    gradients: Gradients,
) -> tuple[PyTree, ...]:
    """For the arguments of `_ffn`, in their types."""
    dx_RD, dw_in, dw_down_EFD = gradients
    return (
        dx_RD,
        tuple(dw_EDF.astype(w.dtype) for dw_EDF, w in zip(dw_in, w_in, strict=True)),
        dw_down_EFD.astype(w_down_EFD.dtype),
        np.zeros(sizes_E.shape, jax.dtypes.float0),
    )


def _backward(hidden: Hidden, residuals: tuple[PyTree, ...], dy_RD: Array) -> tuple[PyTree, ...]:
    x_RD, w_in, w_down_EFD, sizes_E, kept = residuals
    gradients = blocks_gradients(hidden, x_RD, w_in, w_down_EFD, sizes_E, kept, dy_RD)
    return cotangents(w_in, w_down_EFD, sizes_E, gradients)


_ffn.defvjp(_forward, _backward)
