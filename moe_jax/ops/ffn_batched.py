"""The feed-forward of sorted rows as batched products over all experts, and a remainder.

A loop over experts (`ffn_blocks`) copies each expert's matrices out of the array of all, and XLA's
CPU backend waits at every product. A batched product reads them in place, but needs as many rows of
each expert. Here every expert gives its first C rows to one batched product per matrix, C a little
above the mean load; what an expert has beyond is the remainder, which goes through the loop. Where
the load is so skewed that this would take longer than the loop for all, the loop it is.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, PyTree

from moe_jax.ops.ffn_blocks import (
    Gradients,
    Hidden,
    Matrices,
    add_products,
    blocks_gradients,
    cotangents,
    ffn_blocks,
    pull_back,
    run_blocks,
)
from moe_jax.ops.grouped_matmul.blocks import add_to_group, dot
from moe_jax.ops.grouped_matmul.tiling import BlockSizes, RowBlock, for_each_block
from moe_jax.ops.grouped_matmul.vma import same_axes
from moe_jax.ops.permute import take_or_zero
from moe_jax.ops.precision import accumulator

# Costs in slots of the batched products, as measured on CPU: of a row in the loop, and of an expert
# that has some, whose matrices are copied. In the remainder, the backward pass computes the
# products before the activation again, and adds to the gradients of the batched rows.
LOOP_ROW, LOOP_EXPERT = 1.2, 40.0
REMAINDER_ROW, REMAINDER_EXPERT = 1.6, 64.0

Static = tuple[Hidden, int]  # the hidden function, and the rows of each expert that are batched


def batched_rows(R: int, E: int) -> int:
    """Rows of each expert that are batched: the mean of a balanced load and 1.25 of its deviations
    (of R independent choices), a multiple of 8."""
    mean = R / E
    return 8 * math.ceil((mean + 1.25 * math.sqrt(mean)) / 8)


def remainder_blocks(R: int) -> BlockSizes:
    """Few sizes: each is compiled twice."""
    return BlockSizes(
        first=tuple(sorted({min(B, R) for B in (32, 128, 512)})),
        more=tuple(sorted({min(B, R) for B in (128, 512)})),
    )


@dataclass(frozen=True)
class Batched:
    """Which rows are batched: slot c of expert e is row start_e + c; R where c >= sizes_e."""

    start_E: Int[Array, "E"]
    sizes_E: Int[Array, "E"]
    row_EC: Int[Array, "E C"]
    slot_R: Int[Array, "R"]  # e C + c; E C where the row is in the remainder or of no expert
    pays: Bool[Array, ""]  # else all rows are left to the loop

    @classmethod
    def of(cls, sizes_E: Array, R: int, C: int) -> Batched:
        E = sizes_E.shape[0]
        beyond_E = jnp.maximum(sizes_E - C, 0)
        end_E = jnp.cumsum(sizes_E)
        start_E = end_E - sizes_E
        c_1C = jnp.arange(C, dtype=jnp.int32)[None, :]
        row_R = jnp.arange(R, dtype=jnp.int32)
        expert_R = jnp.sum(row_R[:, None] >= end_E[None, :], axis=1, dtype=jnp.int32)
        own_R = jnp.minimum(expert_R, E - 1)
        place_R = row_R - start_E[own_R]
        is_batched_R = (expert_R < E) & (place_R < C)
        return cls(
            start_E=start_E,
            sizes_E=sizes_E,
            row_EC=jnp.where(c_1C < sizes_E[:, None], start_E[:, None] + c_1C, R),
            slot_R=jnp.where(is_batched_R, own_R * C + place_R, E * C),
            pays=E * C + _cost(beyond_E, REMAINDER_ROW, REMAINDER_EXPERT)
            < _cost(sizes_E, LOOP_ROW, LOOP_EXPERT),
        )

    def slots(self, x_RK: Float[Array, "R K"]) -> Float[Array, "E C K"]:
        """The batched rows, and zeros."""
        return take_or_zero(x_RK, self.row_EC)

    def rows(self, y_ECK: Float[Array, "E C K"]) -> Float[Array, "R K"]:
        """The slots as rows; zeros for rows that are not batched."""
        return take_or_zero(y_ECK.reshape(-1, y_ECK.shape[-1]), self.slot_R)

    def remainder(self) -> tuple[Int[Array, "E"], Int[Array, "E"]]:
        """Sizes and starts of what the experts have beyond their batched rows."""
        C = self.row_EC.shape[1]
        return jnp.maximum(self.sizes_E - C, 0), self.start_E + C


def _cost(sizes_E: Array, of_row: float, of_expert: float) -> Array:
    rows, experts = (jnp.sum(x_E, dtype=jnp.float32) for x_E in (sizes_E, sizes_E > 0))
    return of_row * rows + of_expert * experts


def ffn_batched(
    hidden: Hidden,
    x_RD: Float[Array, "R D"],
    w_in: tuple[Float[Array, "E D F"], ...],
    w_down_EFD: Float[Array, "E F D"],
    sizes_E: Int[Array, "E"],
    expected: int | None = None,
) -> Float[Array, "R D"]:
    """As `ffn_blocks`. expected: rows under an even load; None: R. Where it is less than R (a
    buffer with room for uneven loads) nothing is batched."""
    R, E = x_RD.shape[0], w_down_EFD.shape[0]
    if R == 0 or (expected is not None and expected < R):
        return ffn_blocks(hidden, x_RD, w_in, w_down_EFD, sizes_E)
    C = min(batched_rows(R, E), R)
    return _ffn((hidden, C), *same_axes(x_RD, w_in, w_down_EFD, sizes_E.astype(jnp.int32)))


def _batched(a_ECK: Array, b: Array, axis_b: int) -> Array:
    """Products of each expert, contracting a's last axis, in float32 or better."""
    dimensions = (((2,), (axis_b,)), ((0,), (0,)))
    dtype = accumulator(a_ECK.dtype)
    return jax.lax.dot_general(a_ECK, b, dimensions, preferred_element_type=dtype)


def _outer(a_ECK: Array, b_ECN: Array) -> Array:
    """transpose(a_e) b_e."""
    dimensions = (((1,), (1,)), ((0,), (0,)))
    dtype = accumulator(a_ECK.dtype)
    return jax.lax.dot_general(a_ECK, b_ECN, dimensions, preferred_element_type=dtype)


def _run_batched(
    hidden: Hidden, x_RD: Array, w_in: Matrices, w_down_EFD: Array, batch: Batched
) -> tuple[Array, list[Array]]:
    """The output, and the products before the activation (E C, F) of the batched rows."""
    R, dtype = x_RD.shape[0], x_RD.dtype
    products = [_batched(batch.slots(x_RD), w_EDF, 1) for w_EDF in w_in]
    y_ECD = _batched(hidden(*products).astype(dtype), w_down_EFD, 1)

    def body(block: RowBlock, e: Array, is_first: bool, own: list[Array], y_RD: Array) -> Array:
        h_BF = hidden(*(dot(block.read(x_RD), w_DF) for w_DF in own[:-1])).astype(dtype)
        return block.store(y_RD, dot(h_BF, own[-1]))

    sizes_E, start_E = batch.remainder()
    y_RD, matrices = batch.rows(y_ECD.astype(dtype)), [*w_in, w_down_EFD]
    y_RD = for_each_block(sizes_E, R, matrices, body, y_RD, start_E, remainder_blocks(R))
    return y_RD, [a_ECF.astype(dtype).reshape(-1, a_ECF.shape[-1]) for a_ECF in products]


def _batched_gradients(
    hidden: Hidden,
    x_RD: Array,
    w_in: Matrices,
    w_down_EFD: Array,
    batch: Batched,
    kept: list[Array],
    dy_RD: Array,
) -> Gradients:
    R, dtype, F = x_RD.shape[0], accumulator(x_RD.dtype), w_down_EFD.shape[1]
    dy_ECD = batch.slots(dy_RD)
    h_ECF, vjp = jax.vjp(hidden, *(a.reshape(*batch.row_EC.shape, F).astype(dtype) for a in kept))
    dw_down_EFD = _outer(h_ECF.astype(x_RD.dtype), dy_ECD)
    d_in = [a.astype(x_RD.dtype) for a in vjp(_batched(dy_ECD, w_down_EFD, 2))]
    x_ECD = batch.slots(x_RD)
    dw_in = [_outer(x_ECD, a_ECF) for a_ECF in d_in]
    terms = [_batched(a_ECF, w_EDF, 2) for a_ECF, w_EDF in zip(d_in, w_in, strict=True)]
    dx_RD = batch.rows(functools.reduce(jnp.add, terms).astype(x_RD.dtype))

    def body(
        block: RowBlock, e: Array, is_first: bool, own: list[Array], carry: Gradients
    ) -> Gradients:
        dx_RD, dw_in, dw_down_EFD = carry
        x_BD, dy_BD = block.load(x_RD), block.load(dy_RD)
        products = [dot(x_BD, w_DF) for w_DF in own[:-1]]
        h_BF, d_in, dx_BD = pull_back(hidden, own, products, dy_BD)
        dw_in = add_products(dw_in, x_BD.T, d_in, e, False)
        dw_down_EFD = add_to_group(dw_down_EFD, dot(h_BF.T, dy_BD), e, False)
        return block.store(dx_RD, dx_BD), dw_in, dw_down_EFD

    sizes_E, start_E = batch.remainder()
    matrices, carry = [*w_in, w_down_EFD], (dx_RD, dw_in, dw_down_EFD)
    return for_each_block(sizes_E, R, matrices, body, carry, start_E, remainder_blocks(R))


def _run(
    static: Static, keep: bool, x_RD: Array, w_in: Matrices, w_down_EFD: Array, sizes_E: Array
) -> tuple[Array, list[Array]]:
    (hidden, C), (R, E) = static, (x_RD.shape[0], w_down_EFD.shape[0])
    batch = Batched.of(sizes_E, R, C)

    def batched(x_RD: Array, w_in: Matrices, w_down_EFD: Array) -> tuple[Array, list[Array]]:
        y_RD, kept = _run_batched(hidden, x_RD, w_in, w_down_EFD, batch)
        return y_RD, kept if keep else []

    def loop(x_RD: Array, w_in: Matrices, w_down_EFD: Array) -> tuple[Array, list[Array]]:
        return run_blocks(hidden, x_RD, w_in, w_down_EFD, sizes_E, E * C if keep else 0)

    return jax.lax.cond(batch.pays, batched, loop, x_RD, w_in, w_down_EFD)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ffn(static: Static, x_RD: Array, w_in: Matrices, w_down_EFD: Array, sizes_E: Array) -> Array:
    return _run(static, False, x_RD, w_in, w_down_EFD, sizes_E)[0]


def _forward(
    static: Static, x_RD: Array, w_in: Matrices, w_down_EFD: Array, sizes_E: Array
) -> tuple[Array, tuple[PyTree, ...]]:
    y_RD, kept = _run(static, True, x_RD, w_in, w_down_EFD, sizes_E)
    kept = [checkpoint_name(a, "expert_hidden") for a in kept]
    return y_RD, (x_RD, w_in, w_down_EFD, sizes_E, kept)


def _backward(static: Static, residuals: tuple[PyTree, ...], dy_RD: Array) -> tuple[PyTree, ...]:
    x_RD, w_in, w_down_EFD, sizes_E, kept = residuals
    hidden, C = static
    batch = Batched.of(sizes_E, x_RD.shape[0], C)

    def batched(*arrays: PyTree) -> Gradients:
        x_RD, w_in, w_down_EFD, kept, dy_RD = arrays
        return _batched_gradients(hidden, x_RD, w_in, w_down_EFD, batch, kept, dy_RD)

    def loop(*arrays: PyTree) -> Gradients:
        x_RD, w_in, w_down_EFD, kept, dy_RD = arrays
        return blocks_gradients(hidden, x_RD, w_in, w_down_EFD, sizes_E, kept, dy_RD)

    arrays = (x_RD, w_in, w_down_EFD, kept, dy_RD)
    return cotangents(w_in, w_down_EFD, sizes_E, jax.lax.cond(batch.pays, batched, loop, *arrays))


_ffn.defvjp(_forward, _backward)
