"""The one device mesh: axes data, fsdp, expert, tensor, sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule

AXES = ("data", "fsdp", "expert", "tensor", "sequence")
# Tokens are split over every axis that is not a split of a single token's arithmetic; the batch's
# rows over the first three, the positions of a row over `sequence`.
ROW_AXES = ("data", "fsdp", "expert")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices stand along each axis; -1 for one axis: all devices that remain."""

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1
    sequence: int = 1

    def check(self) -> Iterator[Rule]:
        for field in fields(self):
            if (size := getattr(self, field.name)) < 1 and size != -1:
                yield field.name, "must be at least 1, or -1 for all devices that remain"
        if sum(getattr(self, field.name) == -1 for field in fields(self)) > 1:
            yield "data", "only one axis of the mesh may be -1"

    def sizes(self, num_devices: int) -> dict[str, int]:
        """The size of each axis on `num_devices` devices.

        Raises UserError where the axes do not multiply to the number of devices.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        fixed = int(np.prod([size for size in sizes.values() if size != -1]))
        for axis, size in sizes.items():
            if size == -1:
                sizes[axis] = max(num_devices // max(fixed, 1), 1)
        product = int(np.prod(list(sizes.values())))
        if product != num_devices or min(sizes.values()) < 1:
            told = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
            raise UserError(f"config.mesh: {told} = {product}, but there are {num_devices} devices")
        return sizes


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all). Size-1 axes are kept; all axes are Auto."""
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    grid = np.asarray(devices).reshape([sizes[axis] for axis in AXES])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
