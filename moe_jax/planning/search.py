"""Every mesh, transport and recomputation that a config could have, ranked by the estimate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from moe_jax.config.errors import UserError
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.planning.estimate import Estimate, estimate
from moe_jax.planning.hardware import Topology
from moe_jax.planning.roofline import Roofline, roofline
from moe_jax.training.experiment import Experiment
from moe_jax.training.rules import cross_check

REMATS = ("none", "expert_hidden", "received", "full")
MOST_TENSOR = 8


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to lay out the same training step, and what it is estimated to take."""

    experiment: Experiment
    estimate: Estimate
    roofline: Roofline

    def fits(self, topology: Topology) -> bool:
        return self.estimate.peak <= topology.chip.memory


def candidate(experiment: Experiment, topology: Topology) -> Candidate:
    found = estimate(experiment, topology.devices)
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
    """All that fit in memory by the estimate, the highest expected utilisation first; among equals
    the one with the least to do beside what binds. UserError where none fits.
    """
    found = [
        candidate(variant, topology)
        for variant in variants(experiment, topology.devices)
        if topology.chip.ragged or variant.moe.transport != "ragged"
    ]
    fitting = [c for c in found if c.fits(topology)]
    if not fitting:
        least = min((c.estimate.peak for c in found), default=0) / 2**30
        raise UserError(
            f"--search: none of {len(found)} layouts fits {topology.name} "
            f"({topology.chip.memory / 2**30:.0f} GiB a device; the least takes {least:.1f} GiB)"
        )

    def order(c: Candidate) -> tuple[float, float]:
        line = c.roofline
        return -round(line.expected_mfu, 6), line.compute + line.memory + line.network

    return sorted(fitting, key=order)


def variants(experiment: Experiment, num_devices: int) -> Iterator[Experiment]:
    """The config on every mesh without `sequence`, with every transport and remat policy, and
    the fewest micro-batches that leave one row on each device at the most."""
    moe = experiment.moe
    for data, fsdp, expert, tensor in _factors(num_devices):
        mesh = MeshConfig(data=data, fsdp=fsdp, expert=expert, tensor=tensor)
        transports = ("all_to_all", "gather", "ragged") if expert > 1 else ("local",)
        rows = experiment.batch_size // max(data * fsdp * expert, 1)
        for transport in transports:
            if transport == "ragged" and moe.layout != "rows":
                continue
            for remat in REMATS:
                variant = dataclasses.replace(
                    experiment,
                    mesh=mesh,
                    accumulation=max(rows, 1),
                    moe=dataclasses.replace(moe, transport=transport),
                    model=dataclasses.replace(experiment.model, remat=remat),
                )
                if not cross_check(variant, num_devices):
                    yield variant


def _factors(num_devices: int) -> Iterator[tuple[int, int, int, int]]:
    """(data, fsdp, expert, tensor) that multiply to the number of devices."""
    for tensor in _divisors(num_devices):
        if tensor > MOST_TENSOR:
            continue
        for expert in _divisors(num_devices // tensor):
            for fsdp in _divisors(num_devices // tensor // expert):
                yield num_devices // tensor // expert // fsdp, fsdp, expert, tensor


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
