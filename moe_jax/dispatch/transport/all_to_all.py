"""Expert parallelism by dense all-to-all over the `expert` mesh axis.

Each of the n devices along the axis holds E / n experts. Buffers have fixed shapes, so the
collective is `jax.lax.all_to_all`, which every platform has. Inside a `shard_map` only.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from moe_jax.ops.expert_ffn import ExpertWeights
from moe_jax.ops.permute import gather_rows, invert_index


def slots(
    x_gECD: Float[Array, "g E C D"], experts: ExpertWeights, axis: str
) -> Float[Array, "g E C D"]:
    """Slots to their experts and back: 2 all-to-alls forward, 2 backward.

    Each sends (n - 1) / n of g * E * C * D elements per device.
    """
    n = jax.lax.axis_size(axis)
    g, E, C, D = x_gECD.shape
    e = E // n
    x_necD = x_gECD.transpose(1, 0, 2, 3).reshape(n, e, g * C, D)
    x_necD = jax.lax.all_to_all(x_necD, axis, 0, 0)  # the leading n: destination -> source
    x_necD = checkpoint_name(x_necD, "received")
    y_eND = experts.slots(x_necD.transpose(1, 0, 2, 3).reshape(e, n * g * C, D))
    y_necD = y_eND.reshape(e, n, g * C, D).transpose(1, 0, 2, 3)
    y_necD = jax.lax.all_to_all(y_necD, axis, 0, 0)
    return y_necD.reshape(E, g, C, D).transpose(1, 0, 2, 3)


def rows(
    x_MD: Float[Array, "M D"],
    sizes_E: Int[Array, "E"],
    experts: ExpertWeights,
    axis: str,
    receive_factor: float,
) -> tuple[Float[Array, "M D"], Bool[Array, "M"]]:
    """Rows, sorted by expert, to their experts and back.

    Every pair of devices has a buffer of B = min(M, ceil(receive_factor * M / n)) rows: exact
    while no device wants to send more than B rows to another; further rows (the last ones in
    expert order) come back as zeros and are marked in the returned overflow mask. A
    receive_factor >= n is always exact.
    Bytes per device and all-to-all: (n - 1) * B * D elements; 2 forward, 2 backward, and one of
    E / n int32 counts per pair.
    """
    n = jax.lax.axis_size(axis)
    M, D = x_MD.shape
    B = min(M, math.ceil(receive_factor * M / n))
    sizes_ne = sizes_E.reshape(n, -1)
    total_n = jnp.sum(sizes_ne, axis=1, dtype=jnp.int32)
    start_n = jnp.cumsum(total_n) - total_n

    # Sender: rows of destination d are contiguous from start_d; buffer place (d, j).
    row_M = jnp.arange(M, dtype=jnp.int32)
    destination_M = jnp.searchsorted(jnp.cumsum(total_n), row_M, side="right").astype(jnp.int32)
    used_M = destination_M < n
    nearest_M = jnp.minimum(destination_M, n - 1)
    j_M = row_M - start_n[nearest_M]
    fits_M = used_M & (j_M < B)
    place_M = jnp.where(fits_M, nearest_M * B + j_M, n * B)
    send_index = invert_index(place_M, n * B)  # n * B places -> row, or M
    send_nBD = gather_rows(x_MD, send_index, place_M[:, None]).reshape(n, B, D)
    end_ne = jnp.minimum(jnp.cumsum(sizes_ne, axis=1), B)
    sent_ne = jnp.diff(end_ne, axis=1, prepend=jnp.zeros((n, 1), end_ne.dtype))

    received_ne = jax.lax.all_to_all(sent_ne, axis, 0, 0)
    received_nBD = jax.lax.all_to_all(send_nBD, axis, 0, 0)
    received_nBD = checkpoint_name(received_nBD, "received")

    # Receiver: from (source, expert) order to (expert, source) order, and back.
    place_nB, sizes_e = _sort_received(received_ne, B)
    place_N = place_nB.reshape(-1)
    index_N = invert_index(place_N, n * B)
    sorted_ND = gather_rows(received_nBD.reshape(n * B, D), index_N, place_N[:, None])
    y_ND = experts.rows(sorted_ND, sizes_e)
    back_nBD = gather_rows(y_ND, place_N, index_N[:, None]).reshape(n, B, D)

    back_nBD = jax.lax.all_to_all(back_nBD, axis, 0, 0)
    y_MD = gather_rows(back_nBD.reshape(n * B, D), place_M, send_index[:, None])
    return y_MD, used_M & ~fits_M


def _sort_received(
    received_ne: Int[Array, "n e"], B: int
) -> tuple[Int[Array, "n {B}"], Int[Array, "e"]]:
    """Where received row j of source s goes when all are sorted by (expert, source); n * B for
    the empty rest of a buffer. And the rows per local expert."""
    n, e = received_ne.shape
    sizes_e = jnp.sum(received_ne, axis=0, dtype=jnp.int32)
    start_e = jnp.cumsum(sizes_e) - sizes_e
    target_ne = start_e[None, :] + jnp.cumsum(received_ne, axis=0) - received_ne
    end_ne = jnp.cumsum(received_ne, axis=1)
    j_B = jnp.arange(B, dtype=jnp.int32)
    expert_nB = jnp.sum(j_B[None, :, None] >= end_ne[:, None, :], axis=-1, dtype=jnp.int32)
    used_nB = expert_nB < e
    nearest_nB = jnp.minimum(expert_nB, e - 1)
    within_nB = j_B[None, :] - jnp.take_along_axis(end_ne - received_ne, nearest_nB, axis=1)
    place_nB = jnp.take_along_axis(target_ne, nearest_nB, axis=1) + within_nB
    return jnp.where(used_nB, place_nB, n * B).astype(jnp.int32), sizes_e
