"""Arrays of numpy onto the devices of all processes; each process places what its devices hold."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import ArrayLike
from jaxtyping import PyTree

from moe_jax.parallel.hosts import is_multiprocess


@functools.lru_cache(maxsize=32)
def local_rows(
    sharding: NamedSharding, rows: int, devices: frozenset[jax.Device] | None = None
) -> np.ndarray:
    """Which of the `rows` of a batch a process needs, ascending: those that its devices hold.

    sharding: splits the rows over some axes of the mesh; devices along the others hold the same
    ones. devices: default those of this process.
    """
    here = sharding.addressable_devices if devices is None else devices
    held = np.zeros(rows, bool)
    for device, (index,) in sharding.devices_indices_map((rows,)).items():
        if device in here:
            held[index] = True
    return np.flatnonzero(held)


def put_rows(
    batch: Mapping[str, np.ndarray], held: np.ndarray, rows: int, sharding: NamedSharding
) -> dict[str, jax.Array]:
    """The global arrays (rows, ...) of which `batch` has this process's part.

    held: the numbers of those rows, ascending. Each device must find its own among them.
    """
    if not is_multiprocess():
        return jax.device_put(dict(batch), sharding)

    def one(value: np.ndarray) -> jax.Array:
        def block(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            first = int(np.searchsorted(held, start))
            return value[first : first + stop - start]

        return jax.make_array_from_callback((rows, *value.shape[1:]), sharding, block)

    return {name: one(value) for name, value in batch.items()}


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """jax.device_put of values that every process has whole; arrays of the run stay as they are."""
    if not is_multiprocess():
        return jax.device_put(tree, shardings)

    def one(value: ArrayLike, sharding: NamedSharding) -> jax.Array:
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            return value
        whole = np.asarray(value)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree, shardings)
