"""Published peaks of accelerators, and topologies by name: "v5p:4x4x8", "h200:64"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from moe_jax.config.errors import UserError

GB, GIB = 1e9, 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Peaks of one device, dense bfloat16.

    flops: FLOP/s. memory: bytes. memory_bandwidth: bytes/s. link: bytes/s that a device can send to
    its neighbours over all its links together; torus_dims: dimensions of the TPU torus that share
    them, 0 behind a switch. host: devices behind one switch; slow_link: bytes/s of one device to
    other hosts. ragged: whether the compiler has ragged all-to-alls for it. most: devices of the
    largest slice that is one torus.
    """

    platform: str
    flops: float
    memory: float
    memory_bandwidth: float
    link: float
    torus_dims: int = 0
    host: int | None = None
    slow_link: float | None = None
    ragged: bool = True
    most: int | None = None


# TPU: cloud.google.com/tpu/docs, "System architecture" pages (half of the bidirectional ICI
# figures). GPU: NVIDIA data sheets of the SXM cards (half of NVLink's bidirectional 900 GB/s), and
# one 400 Gbit/s network card per GPU.
CHIPS = {
    "v4": Chip(
        platform="tpu",
        flops=275e12,
        memory=32 * GIB,
        memory_bandwidth=1228 * GB,
        link=300 * GB,
        torus_dims=3,
        most=4096,
    ),
    "v5e": Chip(
        platform="tpu",
        flops=197e12,
        memory=16 * GIB,
        memory_bandwidth=819 * GB,
        link=200 * GB,
        torus_dims=2,
        ragged=False,
        most=256,
    ),
    "v5p": Chip(
        platform="tpu",
        flops=459e12,
        memory=95 * GIB,
        memory_bandwidth=2765 * GB,
        link=600 * GB,
        torus_dims=3,
        most=6144,
    ),
    "v6e": Chip(
        platform="tpu",
        flops=918e12,
        memory=32 * GIB,
        memory_bandwidth=1640 * GB,
        link=400 * GB,
        torus_dims=2,
        most=256,
    ),
    "h100": Chip(
        platform="cuda",
        flops=989e12,
        memory=80 * GB,
        memory_bandwidth=3350 * GB,
        link=450 * GB,
        host=8,
        slow_link=50 * GB,
    ),
    "h200": Chip(
        platform="cuda",
        flops=989e12,
        memory=141 * GB,
        memory_bandwidth=4800 * GB,
        link=450 * GB,
        host=8,
        slow_link=50 * GB,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A number of devices of one kind, wired as `shape` says (TPU: the torus; GPU: one number)."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        return math.prod(self.shape)


def topology_of(name: str) -> Topology:
    """The topology that a name such as "v5p:4x4x8" or "h200:64" stands for; UserError else."""
    kind, _, size = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None:
        raise UserError(f"--topology={name}: no hardware {kind!r}; there are {sorted(CHIPS)}")
    dims = max(chip.torus_dims, 1)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)" + f"{{{dims - 1}}}", size):
        form = "x".join("48") if dims == 2 else "4x4x8" if dims == 3 else "64"
        raise UserError(f"--topology={name}: write {kind} with {dims} number(s): {kind}:{form}")
    shape = tuple(int(number) for number in size.split("x"))
    topology = Topology(name=name, chip=chip, shape=shape)
    if chip.host and topology.devices > chip.host and topology.devices % chip.host:
        raise UserError(f"--topology={name}: must fill hosts of {chip.host} devices")
    return topology


def larger(topology: Topology) -> Topology | None:
    """Twice as many devices: of a torus, the last of its shortest dimensions is twice as long. None
    where there is no such slice."""
    shape, most = list(topology.shape), topology.chip.most
    if most is not None and 2 * topology.devices > most:
        return None
    shortest = max(i for i, size in enumerate(shape) if size == min(shape))
    shape[shortest] *= 2
    kind = topology.name.partition(":")[0]
    return topology_of(f"{kind}:{'x'.join(map(str, shape))}")
