"""The one device mesh: axes data, fsdp, expert, tensor, sequence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least

AXES = ("data", "fsdp", "expert", "tensor", "sequence")
# Tokens are split over every axis that is not a split of a single token's arithmetic; the batch's
# rows over the first three, the positions of a row over `sequence`.
ROW_AXES = ("data", "fsdp", "expert")


def row_shards(sizes: Mapping[str, int]) -> int:
    """Parts into which the devices of a mesh cut the rows of a batch. sizes: of its axes."""
    return math.prod(sizes[axis] for axis in ROW_AXES)


@dataclass(frozen=True, kw_only=True)
class SlowLinks:
    """Factors of the mesh's axes that lie across slices of a TPU pod or across hosts of GPUs.

    The product is the number of slices (where devices have none, of processes); each factor
    divides its axis: data = 8 with slow data = 2 is 4 devices a slice times 2 slices. All 1: the
    order of devices is left to the platform.
    """

    data: int = 1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1
    sequence: int = 1

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, *AXES)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices stand along each axis; -1 for one axis: all devices that remain.

    slow: which part of them lies across the slower network ("DCN").
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1
    sequence: int = 1
    slow: SlowLinks = field(default_factory=SlowLinks)

    def check(self) -> Iterator[Rule]:
        for axis in AXES:
            size, slow = getattr(self, axis), getattr(self.slow, axis)
            if size < 1 and size != -1:
                yield axis, "must be at least 1, or -1 for all devices that remain"
            elif size > 0 and slow > 0 and size % slow:
                message = f"{size} = {size // slow} x {slow} + {size % slow}"
                yield axis, f"must be divisible by slow.{axis} = {slow} ({message})"
        if sum(getattr(self, axis) == -1 for axis in AXES) > 1:
            yield "data", "only one axis of the mesh may be -1"

    @property
    def min_devices(self) -> int:
        """On how few devices the mesh fits."""
        return math.prod(max(getattr(self, axis), 1) for axis in AXES)

    def sizes(self, num_devices: int) -> dict[str, int]:
        """The size of each axis on `num_devices` devices.

        Raises UserError where the axes do not multiply to the number of devices.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        fixed = math.prod(size for size in sizes.values() if size != -1)
        for axis, size in sizes.items():
            if size == -1:
                sizes[axis] = max(num_devices // max(fixed, 1), 1)
        product = math.prod(sizes.values())
        if product != num_devices or min(sizes.values()) < 1:
            message = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
            raise UserError(
                f"config.mesh: {message} = {product}, but there are {num_devices} devices "
                f"(on a CPU, the environment variable JAX_NUM_CPU_DEVICES={product} makes so many)"
            )
        return sizes


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all). Size-1 axes are kept; all axes are Auto.

    Raises UserError where the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(device_grid(config, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_grid(config: MeshConfig, devices: Sequence[Any]) -> np.ndarray:
    """The devices in the shape of the mesh; neighbours along the last axes stand close together:
    on TPU by the topology of the pod, across slices or hosts as `config.slow` says."""
    sizes = config.sizes(len(devices))
    slow = {axis: getattr(config.slow, axis) for axis in AXES}
    shape = [sizes[axis] // slow[axis] for axis in AXES]
    if math.prod(slow.values()) == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    granule = _granule(devices)
    found = len({getattr(device, granule) for device in devices})
    if found != math.prod(slow.values()):
        message = " x ".join(f"{axis}={size}" for axis, size in slow.items() if size > 1)
        unit = "slice(s)" if granule == "slice_index" else "process(es)"
        raise UserError(f"config.mesh.slow: {message}, but the devices form {found} {unit}")
    return mesh_utils.create_hybrid_device_mesh(
        shape,
        list(slow.values()),
        devices,
        process_is_granule=granule == "process_index",
        allow_split_physical_axes=True,
    )


def _granule(devices: Sequence[Any]) -> str:
    """The attribute that tells which devices share a fast network."""
    slices = {getattr(device, "slice_index", None) for device in devices}
    return "slice_index" if len(slices) > 1 else "process_index"


def with_trivial_axes(spec: PartitionSpec, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The same layout with the mesh's axes of size 1 mentioned, in the first dimension.

    The gradient of a `shard_map`'s argument is summed over the axes that its spec leaves out; of a
    sum over one device XLA's CPU backend makes a copy of all experts.
    """
    first, *others = spec
    named = {name for entry in spec for name in axis_names(entry)}
    trivial = [name for name, size in mesh.shape.items() if size == 1 and name not in named]
    return PartitionSpec((*axis_names(first), *trivial), *others)


def axis_names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one dimension in a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
