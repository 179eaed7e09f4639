"""Seconds of compute, memory and network, and the utilisation to expect."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moe_jax.parallel.mesh import AXES
from moe_jax.planning.hardware import Topology

# Fitted on one published figure; docs/plan.md tells how, and how well it does on two others.
EFFICIENCY = 0.73


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of one step if each resource ran at its peak; bound: model FLOPs at peak over the
    longest of the three; expected_mfu = bound * EFFICIENCY."""

    compute: float
    memory: float
    network: float
    model: float  # the model's FLOPs at peak

    @property
    def binds(self) -> str:
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))

    @property
    def bound(self) -> float:
        return self.model / max(self.compute, self.memory, self.network)

    @property
    def expected_mfu(self) -> float:
        return self.bound * EFFICIENCY


def roofline(
    topology: Topology,
    sizes: Mapping[str, int],
    *,
    model_flops: float,
    hardware_flops: float,
    memory_traffic: float,
    sent: Iterable[tuple[str, tuple[str, ...], float]],
) -> Roofline:
    """sent: (operation, mesh axes, bytes sent by one device); all of it one after the other."""
    chip = topology.chip
    network = sum(transfer_seconds(topology, sizes, *transfer) for transfer in sent)
    return Roofline(
        compute=hardware_flops / chip.flops,
        memory=memory_traffic / chip.memory_bandwidth,
        network=network,
        model=model_flops / chip.flops,
    )


def transfer_seconds(
    topology: Topology, sizes: Mapping[str, int], op: str, axes: tuple[str, ...], sent: float
) -> float:
    """Seconds to send `sent` bytes from every device to the others along `axes`.

    Torus: one dimension's two links for each axis, at most all of them; a message of an
    all-to-all among n devices crosses n / 4 links of a ring on average, and each link carries
    both directions, so that it takes max(1, n / 8) times as long. Switch: the fast link where the
    devices of a group share a host, the network card otherwise.
    """
    chip = topology.chip
    if not axes:
        return 0.0
    if chip.torus_dims:
        used = min(len(axes), chip.torus_dims)
        n = max(sizes[axis] for axis in axes)
        far = max(1.0, n / 8) if "all-to-all" in op else 1.0
        return sent * far / (chip.link * used / chip.torus_dims)
    # Neighbours along the last axes stand closest together.
    outermost = min(AXES.index(axis) for axis in axes)
    span = math.prod(sizes[axis] for axis in AXES[outermost:])
    crosses = chip.host is not None and span > chip.host
    speed = chip.slow_link if crosses and chip.slow_link else chip.link
    return sent / speed
