"""Reads a checkpoint's arrays back from its files, before it counts as one.

The library that writes them says when it has done so; whether every array can be found again, whole
and with the values it had, only the files can say. One process reads, without the others: the files
are opened with TensorStore, and values are compared by a checksum that was taken on the devices.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from moe_jax.config.json_files import JsonObject
from moe_jax.config.paths import is_remote

if TYPE_CHECKING:
    from tensorstore import TensorStore

Bits = TypeVar("Bits", jax.Array, np.ndarray)
MODES = ("index", "sample", "values")
SAMPLE_BYTES = 64 << 20  # of values that a sample reads at most
SLICE_BYTES = 64 << 20  # of an array that is in memory at a time
# Of Knuth's multiplicative hash, and of the finaliser of MurmurHash3 (Appleby).
PLACE, FIRST, SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35


def drawn(arrays: Mapping[str, jax.Array], mode: str, step: int) -> list[str]:
    """The arrays whose values are compared. "values": all; "sample": those that come up at this
    step, SAMPLE_BYTES in all, others at the next step; "index": none."""
    if mode == "index":
        return []
    names = [name for name, array in arrays.items() if array.size]
    if mode == "values" or not names:
        return names
    start, chosen, size = step % len(names), [], 0
    for name in names[start:] + names[:start]:
        size += arrays[name].nbytes
        if size > SAMPLE_BYTES:
            break
        chosen.append(name)
    return chosen


def checksum(array: ArrayLike) -> int:
    """sum_i mixed(bits_i + i PLACE) modulo 2^32, over the elements in their order; for elements of
    8 bytes over their halves. A changed bit, a lost block and blocks in another order change it;
    the sharding does not. Taken on the devices of a jax.Array.

    It is waited for, on all devices: two programs whose devices exchange numbers must not run at
    the same time, for each process may begin with another one, and wait for ever for the others.
    """
    if not isinstance(array, jax.Array):
        return int(_of_numpy(np.asarray(array)))
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return int(jax.block_until_ready(_on_devices(array)))


@jax.jit
def _on_devices(array: jax.Array) -> jax.Array:
    bits = _as_unsigned(array)
    places = jnp.zeros(bits.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(bits.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        places = places + index * np.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(_mixed(bits, places), dtype=jnp.uint32)


def _mixed(bits: Bits, places: Bits) -> Bits:
    """Every bit of an element, and its place, in every bit of the result."""
    mixed = bits + places * np.uint32(PLACE)
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(FIRST)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(SECOND)
    return mixed ^ (mixed >> np.uint32(16))


def _as_unsigned(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    width = min(array.dtype.itemsize, 4)
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * width}"))
    return bits.astype(jnp.uint32)


def _of_numpy(array: np.ndarray, first: int = 0) -> np.uint32:
    """The same of an array, or of a slice of one whose first element is number `first`."""
    width = min(array.dtype.itemsize, 4)
    flat = np.ascontiguousarray(array).reshape(-1).view(f"u{width}").astype(np.uint32)
    if array.size:
        first *= flat.size // array.size
    places = np.arange(flat.size, dtype=np.uint32) + np.uint32(first % 2**32)
    return np.sum(_mixed(flat, places), dtype=np.uint32)


def problems(folder: Path, meta: JsonObject, checksums: Mapping[str, int]) -> Iterator[str]:
    """What the files of `folder` lack of the arrays that `meta` names (shapes, dtypes), and which
    of them have other values than `checksums` says; nothing for a good one."""
    import tensorstore

    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": _location(folder)}).result()
    stored = sorted(key.decode() for key in store.list().result())
    for name, shape in meta["shapes"].items():
        if 0 in shape:
            continue  # its shape and dtype, in meta.json, say it all
        keys = _below(stored, name)
        if not keys:
            yield f"{name} is not there"
            continue
        prefix, chunks = f"{name}/", len(keys) - 1  # without its description
        driver = "zarr3" if f"{prefix}zarr.json" in keys else "zarr"
        array = tensorstore.open(
            {"driver": driver, "kvstore": {**store.spec().to_json(), "path": prefix}},
            open=True,
            read=True,
        ).result()
        is_key = meta["dtypes"][name].startswith("key<")  # stored as its words
        if not is_key and list(array.shape) != list(shape):
            yield f"{name} has shape {tuple(array.shape)}, not {tuple(shape)}"
        elif not is_key and array.dtype.name != meta["dtypes"][name]:
            yield f"{name} is {array.dtype.name}, not {meta['dtypes'][name]}"
        elif chunks < _chunks(array):
            yield f"{name} has {chunks} of its {_chunks(array)} blocks"
        elif name in checksums and _checksum_of_file(array) != checksums[name]:
            yield f"{name} has other values than were saved"


def _below(keys: list[str], name: str) -> list[str]:
    """Those of the sorted keys that begin with "name/"."""
    after = chr(ord("/") + 1)
    return keys[bisect.bisect(keys, f"{name}/") : bisect.bisect(keys, f"{name}{after}")]


def _location(folder: Path) -> str | dict[str, str]:
    """As TensorStore names a folder."""
    if is_remote(folder):
        return f"{folder}/"
    return {"driver": "file", "path": f"{folder}/"}


def _chunks(array: Any) -> int:  # whose sizes are all known, unlike in TensorStore's own types
    """How many blocks the array is written in."""
    if array.ndim == 0:
        return 1
    block = array.chunk_layout.write_chunk.shape
    return math.prod(-(-size // part) for size, part in zip(array.shape, block, strict=True))


def _checksum_of_file(array: TensorStore) -> int:
    """Read in slices along the first axis, so that memory does not grow with the array."""
    if array.ndim == 0:
        return int(_of_numpy(array.read().result()))
    row = max(math.prod(array.shape[1:]), 1)
    rows = max(SLICE_BYTES // (row * array.dtype.numpy_dtype.itemsize), 1)
    total = 0
    for first in range(0, array.shape[0], rows):
        part = array[first : min(first + rows, array.shape[0])].read().result()
        total += int(_of_numpy(np.asarray(part), first * row))
    return total % 2**32
