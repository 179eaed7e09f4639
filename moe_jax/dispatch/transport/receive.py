"""What a device does with rows that came from several others."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.experts.types import Networks
from moe_jax.ops.permute import gather_rows, invert_index


def run_received(
    x_ND: Float[Array, "N D"],
    sizes_ne: Int[Array, "n e"],
    start_ne: Int[Array, "n e"],
    experts: Networks,
    expected: int,
) -> Float[Array, "N D"]:
    """The experts on received rows, which lie by (source, expert); the results lie likewise.

    sizes_ne, start_ne: how many rows of each source and local expert came, and where they start;
    starts never fall along the flat (source, expert) order. Places between blocks give zeros.
    expected: rows that come under an even load.
    """
    N = x_ND.shape[0]
    place_N, sizes_e = sort_received(sizes_ne, start_ne, N)
    index_N = invert_index(place_N, N)
    sorted_ND = gather_rows(x_ND, index_N, place_N[:, None])
    y_ND = experts.rows(sorted_ND, sizes_e, expected)
    return gather_rows(y_ND, place_N, index_N[:, None])


def sort_received(
    sizes_ne: Int[Array, "n e"], start_ne: Int[Array, "n e"], N: int
) -> tuple[Int[Array, "{N}"], Int[Array, "e"]]:
    """From (source, expert) order to (expert, source) order.

    Returns for each of the N places of the buffer where its row goes (N: no row lies there), and
    the rows of each local expert.
    """
    sizes_e = jnp.sum(sizes_ne, axis=0, dtype=jnp.int32)
    first_e = jnp.cumsum(sizes_e) - sizes_e
    target_ne = first_e[None, :] + jnp.cumsum(sizes_ne, axis=0) - sizes_ne
    place_N = jnp.arange(N, dtype=jnp.int32)
    # The last block that starts here or before; of several with one start only it has rows.
    block_N = jnp.searchsorted(start_ne.reshape(-1), place_N, side="right") - 1
    within_N = place_N - start_ne.reshape(-1)[block_N]
    used_N = (block_N >= 0) & (within_N < sizes_ne.reshape(-1)[block_N])
    to_N = target_ne.reshape(-1)[block_N] + within_N
    return jnp.where(used_N, to_N, N).astype(jnp.int32), sizes_e
