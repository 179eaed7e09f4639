"""Expert parallelism by ragged all-to-all: only the rows that are there travel.

On CPU, which has no such collective, the same offsets and sizes go through padded buffers.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from moe_jax.dispatch.rows import through_rows
from moe_jax.dispatch.transport.receive import run_received
from moe_jax.experts.types import Networks
from moe_jax.ops.permute import take_or_zero
from moe_jax.routing.types import Plan, SoftPlan


def ragged(
    x_gTD: Float[Array, "g T D"],
    plan_g: Plan | SoftPlan,
    experts: Networks,
    *,
    layout: str,
    axis: str,
    receive_factor: float,
) -> tuple[Float[Array, "g T D"], Int[Array, "g"]]:
    """2 ragged all-to-alls forward and 2 backward. Rows layout only: slots have one size."""
    if layout != "rows":
        raise ValueError(f'transport "ragged" needs layout "rows", not {layout!r}')
    return through_rows(
        x_gTD, plan_g, lambda x, sizes: _rows(x, sizes, experts, axis, receive_factor)
    )


def _rows(
    x_MD: Float[Array, "M D"],
    sizes_E: Int[Array, "E"],
    experts: Networks,
    axis: str,
    receive_factor: float,
) -> tuple[Float[Array, "M D"], Bool[Array, "M"]]:
    """Rows, sorted by expert, to their experts and back.

    A device has room for N = min(n * M, ceil(receive_factor * M)) rows from all others together:
    exact while its experts want no more; then the rows of the last sources, and of those the last
    in expert order, come back as zeros and are marked in the returned mask. A receive_factor >= n
    is always exact.
    Each exchange sends the rows that leave the device, (n - 1) / n * M * D elements under an even
    load; one all-gather, forward, sends (n - 1) * E int32 counts.
    """
    n, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    M, D = x_MD.shape
    N = min(n * M, math.ceil(receive_factor * M))
    # Everyone knows all counts, so that all agree what is sent: (source, destination, expert).
    wanted_nne = jax.lax.all_gather(sizes_E.reshape(n, -1), axis)
    wanted_nn = jnp.sum(wanted_nne, axis=2, dtype=jnp.int32)
    arrival_nn = jnp.cumsum(wanted_nn, axis=0) - wanted_nn  # in the destination's buffer
    departure_nn = jnp.cumsum(wanted_nn, axis=1) - wanted_nn  # in the source's rows
    sent_nn = jnp.clip(N - arrival_nn, 0, wanted_nn)
    arrival_nn = jnp.minimum(arrival_nn, N)

    received_ND = ragged_all_to_all(
        x_MD,
        jnp.zeros((N, D), x_MD.dtype),
        departure_nn[me],
        sent_nn[me],
        arrival_nn[me],
        sent_nn[:, me],
        axis,
    )
    received_ND = checkpoint_name(received_ND, "received")

    end_ne = jnp.minimum(jnp.cumsum(wanted_nne[:, me], axis=1), sent_nn[:, me, None])
    sizes_ne = jnp.diff(end_ne, axis=1, prepend=jnp.zeros((n, 1), end_ne.dtype))
    start_ne = arrival_nn[:, me, None] + end_ne - sizes_ne
    back_ND = run_received(received_ND, sizes_ne, start_ne, experts, M)

    y_MD = ragged_all_to_all(
        back_ND,
        jnp.zeros((M, D), x_MD.dtype),
        arrival_nn[:, me],
        sent_nn[:, me],
        departure_nn[:, me],
        sent_nn[me],
        axis,
    )
    return checkpoint_name(y_MD, "returned"), _lost(departure_nn[me], wanted_nn[me], sent_nn[me], M)


def _lost(
    start_n: Int[Array, "n"], wanted_n: Int[Array, "n"], sent_n: Int[Array, "n"], M: int
) -> Bool[Array, "{M}"]:
    """Rows beyond what their destination had room for."""
    row_M = jnp.arange(M, dtype=jnp.int32)
    destination_M = jnp.searchsorted(start_n + wanted_n, row_M, side="right")
    nearest_M = jnp.minimum(destination_M, start_n.shape[0] - 1)
    return (destination_M < start_n.shape[0]) & (row_M - start_n[nearest_M] >= sent_n[nearest_M])


def ragged_all_to_all(
    x_MD: Float[Array, "M D"],
    out_ND: Float[Array, "N D"],
    from_n: Int[Array, "n"],
    sent_n: Int[Array, "n"],
    to_n: Int[Array, "n"],
    received_n: Int[Array, "n"],
    axis: str,
) -> Float[Array, "N D"]:
    """Rows from_d .. from_d + sent_d of x go to device d, into its `out` from to_d on.

    received_s: rows that come from device s. `jax.lax.ragged_all_to_all` where the platform has
    it, elsewhere its emulation.
    """
    arguments = (x_MD, out_ND, from_n, sent_n, to_n, received_n)
    moved: Array = jax.lax.platform_dependent(
        *arguments,
        cpu=functools.partial(_emulated, axis=axis),
        default=functools.partial(jax.lax.ragged_all_to_all, axis_name=axis),
    )
    return moved


def _emulated(
    x_MD: Array,
    out_ND: Array,
    from_n: Array,
    sent_n: Array,
    to_n: Array,
    received_n: Array,
    *,
    axis: str,
) -> Array:
    """The same by an all-to-all of n buffers of min(M, N) rows each."""
    (M, _), N = x_MD.shape, out_ND.shape[0]
    j_B = jnp.arange(min(M, N), dtype=jnp.int32)
    index_nB = jnp.where(j_B[None] < sent_n[:, None], from_n[:, None] + j_B[None], M)
    sent_nBD = take_or_zero(x_MD, index_nB)
    got_nBD = jax.lax.all_to_all(sent_nBD, axis, 0, 0)
    at_n = jax.lax.all_to_all(to_n, axis, 0, 0, tiled=True)
    place_nB = jnp.where(j_B[None] < received_n[:, None], at_n[:, None] + j_B[None], N)
    return out_ND.at[place_nB].set(got_nBD, mode="drop", unique_indices=True)
