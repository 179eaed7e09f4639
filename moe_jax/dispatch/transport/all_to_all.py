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

from moe_jax.dispatch.rows import through_rows
from moe_jax.dispatch.slots import FILLS, through_slots
from moe_jax.dispatch.transport.receive import run_received
from moe_jax.experts.types import Networks
from moe_jax.ops.permute import gather_rows, invert_index
from moe_jax.routing.types import Plan, SoftPlan


def all_to_all(
    x_gTD: Float[Array, "g T D"],
    plan_g: Plan | SoftPlan,
    experts: Networks,
    *,
    layout: str,
    axis: str,
    receive_factor: float,
) -> tuple[Float[Array, "g T D"], Int[Array, "g"]]:
    """2 all-to-alls forward and 2 backward; see `_slots` and `_rows` for their bytes."""
    if layout in FILLS:
        y_gTD = through_slots(x_gTD, plan_g, layout, lambda x: _slots(x, experts, axis))
        return y_gTD, jnp.zeros(x_gTD.shape[:1], jnp.int32)
    return through_rows(
        x_gTD, plan_g, lambda x, sizes: _rows(x, sizes, experts, axis, receive_factor)
    )


def _slots(
    x_gECD: Float[Array, "g E C D"], experts: Networks, axis: str
) -> Float[Array, "g E C D"]:
    """Slots to their experts and back. Each all-to-all sends (n - 1) / n of g * E * C * D elements
    per device."""
    n = jax.lax.axis_size(axis)
    g, E, C, D = x_gECD.shape
    e = E // n
    x_necD = x_gECD.transpose(1, 0, 2, 3).reshape(n, e, g * C, D)
    x_necD = jax.lax.all_to_all(x_necD, axis, 0, 0)  # the leading n: destination -> source
    x_necD = checkpoint_name(x_necD, "received")
    y_eND = experts.slots(x_necD.transpose(1, 0, 2, 3).reshape(e, n * g * C, D))
    y_necD = y_eND.reshape(e, n, g * C, D).transpose(1, 0, 2, 3)
    y_necD = checkpoint_name(jax.lax.all_to_all(y_necD, axis, 0, 0), "returned")
    y_gECD: Array = y_necD.reshape(E, g, C, D).transpose(1, 0, 2, 3)
    return y_gECD


def _rows(
    x_MD: Float[Array, "M D"],
    sizes_E: Int[Array, "E"],
    experts: Networks,
    axis: str,
    receive_factor: float,
) -> tuple[Float[Array, "M D"], Bool[Array, "M"]]:
    """Rows, sorted by expert, to their experts and back.

    Every pair of devices has a buffer of B = min(M, ceil(receive_factor * M / n)) rows: exact
    while no device wants to send more than B rows to another; further rows (the last ones in
    expert order) come back as zeros and are marked in the returned overflow mask. A
    receive_factor >= n is always exact.
    Each all-to-all sends (n - 1) * B * D elements per device; one more, forward, sends (n - 1) / n
    of E int32 counts.
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

    source_n1 = jnp.arange(n, dtype=jnp.int32)[:, None]
    start_ne = source_n1 * B + jnp.cumsum(received_ne, axis=1) - received_ne
    back_ND = run_received(received_nBD.reshape(n * B, D), received_ne, start_ne, experts, M)

    back_nBD = jax.lax.all_to_all(back_ND.reshape(n, B, D), axis, 0, 0)
    back_nBD = checkpoint_name(back_nBD, "returned")
    y_MD = gather_rows(back_nBD.reshape(n * B, D), place_M, send_index[:, None])
    return y_MD, used_M & ~fits_M
