"""Every mesh, transport and recomputation that a config could have, ranked by the estimate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from moe_jax.config.activity import doing
from moe_jax.config.errors import UserError
from moe_jax.parallel.mesh import MeshConfig, row_shards
from moe_jax.planning.estimate import Estimate, estimate
from moe_jax.planning.hardware import Topology
from moe_jax.planning.roofline import Roofline, roofline
from moe_jax.training.experiment import Experiment
from moe_jax.training.rules import cross_check

REMATS = ("none", "expert_hidden", "received", "full")
MAX_TENSOR = 8
# Compilers took up to 1.4 times the estimated memory: a search leaves them a quarter.
FILLED = 0.75


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to lay out the same training step, and what it is estimated to take."""

    experiment: Experiment
    estimate: Estimate
    roofline: Roofline

    def fits(self, topology: Topology, filled: float = FILLED) -> bool:
        """Whether the estimate leaves the compiler some room: all but `filled` of the memory."""
        return self.estimate.peak <= filled * topology.chip.memory


def candidate(experiment: Experiment, topology: Topology) -> Candidate:
    found = estimate(experiment, topology.devices, topology.chip.platform)
    line = roofline(
        topology,
        found.sizes,
        model_flops=found.model_flops,
        hardware_flops=found.hardware_flops,
        memory_traffic=found.memory_traffic,
        sent=[(t.op, t.axes, t.bytes_sent) for t in found.traffic],
    )
    return Candidate(experiment=experiment, estimate=found, roofline=line)


def search(experiment: Experiment, topology: Topology) -> list[Candidate]:
    """Every layout that fits in memory by the estimate, with the fewest micro-batches that do; the
    highest expected utilisation first, among equals the one with the least to do beside what
    binds. UserError where none fits.
    """
    found: list[Candidate] = []
    tried, least = 0, math.inf
    with doing("estimating", unit="layouts") as estimating:
        for layout in layouts(experiment, topology):
            for variant in micro_batched(layout, topology.devices):
                one = candidate(variant, topology)
                tried, least = tried + 1, min(least, one.estimate.peak)
                estimating.advance()
                if one.fits(topology):
                    found.append(one)
                    break
    if not found:
        needed = f"; the least takes {least / 2**30:.1f} GiB" if tried else ""
        raise UserError(
            f"--search: none of {tried} layouts fits {FILLED:.0%} of {topology.name} "
            f"({topology.chip.memory / 2**30:.0f} GiB a device{needed})"
        )

    def order(c: Candidate) -> tuple[float, float]:
        line = c.roofline
        return -round(line.expected_mfu, 6), line.compute + line.memory + line.network

    return sorted(found, key=order)


def layouts(experiment: Experiment, topology: Topology) -> Iterator[Experiment]:
    """The config on every mesh without `sequence`, with every transport that the hardware has and
    every remat policy."""
    moe = experiment.moe
    for data, fsdp, expert, tensor in _factors(topology.devices):
        transports = ("all_to_all", "gather", "ragged") if expert > 1 else ("local",)
        for transport in transports:
            if transport == "ragged" and (moe.layout != "rows" or not topology.chip.ragged):
                continue
            for remat in REMATS:
                yield dataclasses.replace(
                    experiment,
                    mesh=MeshConfig(data=data, fsdp=fsdp, expert=expert, tensor=tensor),
                    moe=dataclasses.replace(moe, transport=transport),
                    model=dataclasses.replace(experiment.model, remat=remat),
                )


def micro_batched(layout: Experiment, num_devices: int) -> Iterator[Experiment]:
    """A layout in ever more micro-batches, as far as each device has rows."""
    sizes = layout.mesh.sizes(num_devices)
    rows = layout.batch_size // row_shards(sizes)
    for accumulation in _divisors(max(rows, 1)):
        variant = dataclasses.replace(layout, accumulation=accumulation)
        if not cross_check(variant, num_devices):
            yield variant


def _factors(num_devices: int) -> Iterator[tuple[int, int, int, int]]:
    """(data, fsdp, expert, tensor) that multiply to the number of devices."""
    for tensor in _divisors(num_devices):
        if tensor > MAX_TENSOR:
            continue
        for expert in _divisors(num_devices // tensor):
            for fsdp in _divisors(num_devices // tensor // expert):
                yield num_devices // tensor // expert // fsdp, fsdp, expert, tensor


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
