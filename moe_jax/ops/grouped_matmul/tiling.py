"""Groups of rows cut into blocks of a few fixed sizes, and the loop over the blocks.

XLA needs static shapes, groups have any size. One block size is a bad compromise: small blocks
read a group's matrix again and again, large ones compute many rows for nothing. Here a group has
one first block of a size that fits it, and further blocks if it is larger; which ones is looked
up in a table of the cheapest combinations. The loop visits only groups that have rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Carry = TypeVar("Carry")

# Cost of a block beyond its rows, in rows: its matrix is copied out of the array of all matrices
# and packed by the matmul; the weight gradients of a further block are added to the first one's.
FIRST_OVERHEAD, MORE_OVERHEAD = 32, 64
# First blocks around the mean rows of a group, so that most groups of a balanced load take one.
# Smaller blocks than the least cost nearly as much; larger ones than the most gain nothing.
FIRST_FRACTIONS, FIRST_MIN, FIRST_MOST = (0.25, 0.5, 0.75, 1.0, 1.125, 1.25), 32, 2048
MORE = (32, 128, 512, 2048)


@dataclass(frozen=True)
class BlockSizes:
    """The sizes on offer, ascending: of the first block of a group, and of further ones."""

    first: tuple[int, ...]
    more: tuple[int, ...]


def block_sizes(R: int, E: int) -> BlockSizes:
    """The sizes for R rows in E groups, none above R."""
    first = {8 * math.ceil(fraction * R / E / 8) for fraction in FIRST_FRACTIONS}
    first = {min(max(B, FIRST_MIN), FIRST_MOST, R) for B in first}
    more = [B for B in MORE if min(R, max(512, R // E)) >= B]
    return BlockSizes(first=tuple(sorted(first)), more=tuple(more or [R]))


@functools.lru_cache
def cheapest_tiling(sizes: BlockSizes) -> Int[np.ndarray, "N width"]:
    """How to cover a group of n rows at the least cost of rows and overheads, for n < N.

    Row n of the (N, 1 + M) table: the first block's size (1, 2, ...; 0: none, n = 0), and how
    many blocks of each of the M further sizes. By dynamic programming.
    """
    first, more = np.array(sizes.first), np.array(sizes.more)
    N = first[-1] + 2 * more[-1]
    rest_cost = np.zeros(N)
    rest_counts = np.zeros((N, len(more)), np.int32)
    table = np.zeros((N, 1 + len(more)), np.int32)
    for n in range(1, N):
        left_M = np.maximum(n - more, 0)
        cost_M = rest_cost[left_M] + more + MORE_OVERHEAD
        best = np.argmin(cost_M)
        rest_cost[n] = cost_M[best]
        rest_counts[n] = rest_counts[left_M[best]] + np.eye(len(more), dtype=np.int32)[best]
        left_F = np.maximum(n - first, 0)
        best = np.argmin(rest_cost[left_F] + first + FIRST_OVERHEAD)
        table[n] = 1 + best, *rest_counts[left_F[best]]
    return table


def tiling(
    sizes_E: Int[Array, "E"], sizes: BlockSizes
) -> tuple[Int[Array, "E"], Int[Array, "E M"]]:
    """Each group's row of the table; a group beyond the table takes more of the largest blocks."""
    table = cheapest_tiling(sizes)
    excess_E = jnp.maximum(sizes_E - (len(table) - 1), 0)
    largest_E = (excess_E + sizes.more[-1] - 1) // sizes.more[-1]
    row_E = jnp.asarray(table)[sizes_E - largest_E * sizes.more[-1]]
    return row_E[:, 0], row_E[:, 1:].at[:, -1].add(largest_E)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RowBlock:
    """Rows start..start+B of an array of R rows, of which those with `live` are of this block's
    group and of no block before. At the end of the array the slice moves up to stay inside.
    """

    start: Int[Array, ""]
    live_B: Bool[Array, "B"]

    @classmethod
    def at(cls, row: Array, end: Array, B: int, R: int) -> RowBlock:
        start = jnp.minimum(row, R - B)
        row_B = start + jnp.arange(B, dtype=start.dtype)
        return cls(start=start, live_B=(row_B >= row) & (row_B < end))

    def read(self, x_RK: Float[Array, "R K"]) -> Float[Array, "B K"]:
        """The rows, also those that are not live."""
        return jax.lax.dynamic_slice_in_dim(x_RK, self.start, self.live_B.shape[0])

    def load(self, x_RK: Float[Array, "R K"]) -> Float[Array, "B K"]:
        """The live rows, and zeros."""
        return jnp.where(self.live_B[:, None], self.read(x_RK), 0)

    def load_columns(self, x_KR: Float[Array, "K R"]) -> Float[Array, "K B"]:
        """The live columns, and zeros."""
        B = self.live_B.shape[0]
        x_KB = jax.lax.dynamic_slice_in_dim(x_KR, self.start, B, axis=1)
        return jnp.where(self.live_B[None, :], x_KB, 0)

    def store(self, x_RK: Float[Array, "R K"], new_BK: Float[Array, "B K"]) -> Array:
        """x with the live rows replaced."""
        new_BK = jnp.where(self.live_B[:, None], new_BK.astype(x_RK.dtype), self.read(x_RK))
        return jax.lax.dynamic_update_slice_in_dim(x_RK, new_BK, self.start, axis=0)


def own_rows(x_RK: Float[Array, "R K"], sizes_E: Int[Array, "E"]) -> Float[Array, "R K"]:
    """x with zeros past the last group's rows."""
    row_R1 = jnp.arange(x_RK.shape[0], dtype=sizes_E.dtype)[:, None]
    return jnp.where(row_R1 < jnp.sum(sizes_E, dtype=sizes_E.dtype), x_RK, 0)


def for_each_block(
    sizes_E: Int[Array, "E"],
    R: int,
    matrices: Sequence[Float[Array, "E _ _"]],
    body: Callable[[RowBlock, Array, bool, list[Array], Carry], Carry],
    carry: Carry,
    start_E: Int[Array, "E"] | None = None,
    offer: BlockSizes | None = None,
) -> Carry:
    """carry = body(block, group, is_first, [matrix of the group], carry) for all blocks.

    start_E: the first row of each group; None: where the group before it ends. offer: the sizes of
    blocks, none above R; None: those for groups of about R / E rows.

    Blocks come group by group in the order of their rows. `group` is traced, is_first (the first
    block of its group) is a Python bool. Reverse-mode differentiation is the caller's to define.
    """
    E = sizes_E.shape[0]
    if R == 0:
        return carry
    sizes_E = sizes_E.astype(jnp.int32)
    offer = block_sizes(R, E) if offer is None else offer
    first_E, more_EM = tiling(sizes_E, offer)
    start_E = jnp.cumsum(sizes_E) - sizes_E if start_E is None else start_E
    full_E = jnp.nonzero(sizes_E > 0, size=E, fill_value=0)[0].astype(jnp.int32)

    def visit(i: Array, carry: Carry) -> Carry:
        e = full_E[i]
        own = [jax.lax.dynamic_index_in_dim(w, e, keepdims=False) for w in matrices]

        # The row is carried, not computed from the loop's counter: loops here turn once or never,
        # and what does not depend on their state XLA would move out and run always.
        def blocks(
            B: int, is_first: bool, turns: Array, state: tuple[Array, Carry]
        ) -> tuple[Array, Carry]:
            def turn(_: Array, state: tuple[Array, Carry]) -> tuple[Array, Carry]:
                row, carry = state
                block = RowBlock.at(row, start_E[e] + sizes_E[e], B, R)
                return row + B, body(block, e, is_first, own, carry)

            return jax.lax.fori_loop(0, turns, turn, state)

        state = (start_E[e], carry)
        for j, B in enumerate(offer.first):
            state = blocks(B, True, (first_E[e] == j + 1).astype(jnp.int32), state)
        for j, B in reversed(list(enumerate(offer.more))):
            state = blocks(B, False, more_EM[e, j], state)
        return state[1]

    return jax.lax.fori_loop(0, jnp.sum(sizes_E > 0, dtype=jnp.int32), visit, carry)
