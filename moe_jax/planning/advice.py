"""What would fit where a plan does not: the smallest changes of its config, or more hardware."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from moe_jax.config.errors import UserError
from moe_jax.config.tree import value_at
from moe_jax.parallel.mesh import AXES
from moe_jax.planning.hardware import Topology, larger
from moe_jax.planning.search import FILLED, REMATS, Candidate, candidate, layouts, micro_batched
from moe_jax.training.experiment import Experiment

# What a change may be of.
PATHS = ("accumulation", "model.remat", "moe.transport", *(f"mesh.{axis}" for axis in AXES))
MAX_CHANGES = 3
DOUBLINGS = 6  # of the hardware


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """flags: as on the command line. candidate: what the plan is with them."""

    flags: tuple[str, ...]
    candidate: Candidate


def would_fit(tried: Candidate, topology: Topology, *, filled: float = FILLED) -> list[Remedy]:
    """At most MAX_CHANGES changes after which the estimate takes at most `filled` of the memory.

    Of one thing: the fewest micro-batches, the least recomputation, the mesh with the fewest other
    sizes (among equals the highest expected utilisation). Where none of these is enough, of as few
    as are. And the least more hardware.
    """
    before = tried.experiment

    def first(variants: Iterable[Experiment], hardware: Topology = topology) -> Iterator[Remedy]:
        for variant in variants:
            one = _candidate(variant, hardware)
            if one is not None and one.fits(hardware, filled):
                more = () if hardware is topology else (f"--topology={hardware.name}",)
                yield Remedy(flags=(*more, *difference(before, variant)), candidate=one)
                return

    meshes = [layout for layout in _layouts(before, topology) if _same_remat(layout, before)]
    found = [
        *first(_more_micro_batches(before, topology)),
        *first(_less_kept(before)),
        *first(_few_changes_first(meshes, before, topology)),
    ]
    if not found:
        every = (
            v for one in _layouts(before, topology) for v in micro_batched(one, topology.devices)
        )
        found += first(_few_changes_first(every, before, topology))
    for hardware in _larger(topology):
        if more := list(first(_spread(tried, hardware), hardware)):
            found += more
            break
    return found[:MAX_CHANGES]


def _more_micro_batches(experiment: Experiment, topology: Topology) -> Iterator[Experiment]:
    for variant in micro_batched(experiment, topology.devices):
        if variant.accumulation > experiment.accumulation:
            yield variant


def _less_kept(experiment: Experiment) -> Iterator[Experiment]:
    """With every policy of recomputation that keeps less, the one that keeps the most first."""
    now = experiment.model.remat
    for remat in REMATS[REMATS.index(now) + 1 :] if now in REMATS else REMATS:
        yield dataclasses.replace(
            experiment, model=dataclasses.replace(experiment.model, remat=remat)
        )


def _same_remat(layout: Experiment, before: Experiment) -> bool:
    return layout.model.remat == before.model.remat


def _layouts(experiment: Experiment, topology: Topology) -> Iterator[Experiment]:
    """Those of a search that keep the config's transport, said in its own words: what is open in
    its mesh (-1) stays so, and a mesh without `expert` leaves the transport as it is."""
    asked = experiment.moe.transport if experiment.moe.transport != "local" else "all_to_all"
    open_axes = {axis: -1 for axis in AXES if getattr(experiment.mesh, axis) == -1}
    for layout in layouts(experiment, topology):
        if layout.moe.transport in (asked, "local"):
            mesh = dataclasses.replace(layout.mesh, slow=experiment.mesh.slow, **open_axes)
            moe = layout.moe if layout.mesh.expert > 1 else experiment.moe
            yield dataclasses.replace(layout, mesh=mesh, moe=moe)


def _few_changes_first(
    variants: Iterable[Experiment], before: Experiment, topology: Topology
) -> Iterator[Experiment]:
    """Of equally many changes the one with the highest expected utilisation first."""
    found = []
    for variant in variants:
        if (one := _candidate(variant, topology)) is not None:
            changes = len(difference(before, variant))
            found.append(((changes, -one.roofline.expected_mfu), variant))
    for _, variant in sorted(found, key=lambda row: row[0]):
        yield variant


def _larger(topology: Topology) -> Iterator[Topology]:
    bigger: Topology | None = topology
    for _ in range(DOUBLINGS):
        if bigger is not None and (bigger := larger(bigger)) is not None:
            yield bigger


def _spread(tried: Candidate, hardware: Topology) -> Iterator[Experiment]:
    """The config as it is, which may leave an axis open; then with all that is new along fsdp."""
    experiment, sizes = tried.experiment, tried.estimate.sizes
    yield experiment
    fsdp = sizes["fsdp"] * hardware.devices // math.prod(sizes.values())
    mesh = dataclasses.replace(experiment.mesh, fsdp=fsdp)
    yield dataclasses.replace(experiment, mesh=mesh)


def _candidate(experiment: Experiment, topology: Topology) -> Candidate | None:
    """None where the config does not fit the mesh, or its batch the devices."""
    try:
        return candidate(experiment, topology)
    except UserError:
        return None


def difference(before: Experiment, after: Experiment) -> tuple[str, ...]:
    """The overrides that make one of the other."""
    pairs = ((path, value_at(before, path), value_at(after, path)) for path in PATHS)
    return tuple(f"--config.{path}={new}" for path, old, new in pairs if new != old)
