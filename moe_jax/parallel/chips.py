"""Accelerators and their published peaks: the one table of the project."""

from __future__ import annotations

from dataclasses import dataclass

GB, GIB = 1e9, float(2**30)


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Peaks of one device, dense bfloat16.

    flops: FLOP/s. memory: bytes. memory_bandwidth: bytes/s. link: bytes/s that a device can send to
    its neighbours over all its links together; torus_dims: dimensions of the TPU torus that share
    them, 0 behind a switch. host: devices behind one switch; slow_link: bytes/s of one device to
    other hosts. ragged: whether the compiler has ragged all-to-alls for it. most: devices of the
    largest slice that is one torus. device_kinds: the first words of what JAX calls the device.
    """

    platform: str
    device_kinds: tuple[str, ...]
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
        device_kinds=("TPU v4",),
        flops=275e12,
        memory=32 * GIB,
        memory_bandwidth=1228 * GB,
        link=300 * GB,
        torus_dims=3,
        most=4096,
    ),
    "v5e": Chip(
        platform="tpu",
        device_kinds=("TPU v5 lite", "TPU v5e"),
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
        device_kinds=("TPU v5", "TPU v5p"),
        flops=459e12,
        memory=95 * GIB,
        memory_bandwidth=2765 * GB,
        link=600 * GB,
        torus_dims=3,
        most=6144,
    ),
    "v6e": Chip(
        platform="tpu",
        device_kinds=("TPU v6 lite", "TPU v6e"),
        flops=918e12,
        memory=32 * GIB,
        memory_bandwidth=1640 * GB,
        link=400 * GB,
        torus_dims=2,
        most=256,
    ),
    "h100": Chip(
        platform="cuda",
        device_kinds=("NVIDIA H100",),
        flops=989e12,
        memory=80 * GB,
        memory_bandwidth=3350 * GB,
        link=450 * GB,
        host=8,
        slow_link=50 * GB,
    ),
    "h200": Chip(
        platform="cuda",
        device_kinds=("NVIDIA H200",),
        flops=989e12,
        memory=141 * GB,
        memory_bandwidth=4800 * GB,
        link=450 * GB,
        host=8,
        slow_link=50 * GB,
    ),
}

# Cards that no plan is made for.
OTHER_PEAKS = {"NVIDIA A100": 312e12, "NVIDIA B200": 2250e12}
BFLOAT16_PEAKS = OTHER_PEAKS | {
    kind: chip.flops for chip in CHIPS.values() for kind in chip.device_kinds
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """FLOP/s of `dtype` matmuls of a JAX device of that kind; None where it is not known."""
    if dtype != "bfloat16":
        return None
    names = [name for name in BFLOAT16_PEAKS if device_kind.startswith(name)]
    return BFLOAT16_PEAKS[max(names, key=len)] if names else None
