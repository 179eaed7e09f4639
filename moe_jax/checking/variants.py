"""What the check varies: the mesh, how tokens travel, micro-batches, what is computed again; and,
once, the compute type.

The set is kept small, because each variant is a program to compile: every mesh axis alone with the
config's own layout and transport; on one mesh every pair of layout and transport, and every policy
of recomputation; and a few meshes and settings together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from moe_jax.dispatch import LAYOUTS, TRANSPORTS
from moe_jax.models.transformer import REMAT_POLICIES
from moe_jax.parallel.mesh import AXES, MeshConfig
from moe_jax.training.experiment import Experiment
from moe_jax.training.rules import cross_check


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run the same steps. mesh: the axes that have more than one device."""

    mesh: tuple[tuple[str, int], ...] = ()
    layout: str
    transport: str = "local"
    overlap_chunks: int = 1
    accumulation: int = 1
    remat: str = "none"
    dtype: str = "float32"

    @property
    def axes(self) -> dict[str, int]:
        return dict(self.mesh)

    @property
    def devices(self) -> int:
        devices = 1
        for _, size in self.mesh:
            devices *= size
        return devices

    @property
    def name(self) -> str:
        mesh = " ".join(f"{axis}={size}" for axis, size in self.mesh) or "1 device"
        spread = "expert" in self.axes
        parts = [mesh, f"{self.layout}/{self.transport}" if spread else self.layout]
        for name in ("overlap_chunks", "accumulation", "remat", "dtype"):
            if (value := getattr(self, name)) != getattr(Variant, name):
                parts.append(f"{name}={value}")
        return " ".join(part for part in parts if part)

    @property
    def factors(self) -> frozenset[str]:
        """What may be to blame if this variant differs."""
        found = {f"mesh axis {axis}" for axis in self.axes}
        if self.layout:
            found.add(f"layout {self.layout}")
        if "expert" in self.axes:
            found.add(f"transport {self.transport}")
        found |= {"overlap_chunks"} if self.overlap_chunks > 1 else set()
        found |= {"accumulation"} if self.accumulation > 1 else set()
        found |= {f"remat {self.remat}"} if self.remat != "none" else set()
        found |= {f"dtype {self.dtype}"} if self.dtype != "float32" else set()
        return frozenset(found)

    def apply(self, experiment: Experiment) -> Experiment:
        """The experiment run so. The receive buffer has its exact maximum: nothing overflows."""
        e = experiment
        axes: dict[str, Any] = dict.fromkeys(AXES, 1) | self.axes
        moe = e.moe
        if moe.every:
            moe = replace(
                moe,
                layout=self.layout,
                transport=self.transport,
                receive_factor=float(axes["expert"]),
                overlap_chunks=self.overlap_chunks,
            )
        return replace(
            e,
            mesh=MeshConfig(**axes),
            accumulation=self.accumulation,
            model=replace(e.model, remat=self.remat, dtype=self.dtype),
            moe=moe,
        )


@dataclass(frozen=True)
class Skipped:
    """A variant that this config or this machine cannot run, and why."""

    name: str
    reason: str


def reference(experiment: Experiment) -> Variant:
    """One device that computes every expert on every token, in one micro-batch."""
    return Variant(layout="dense" if experiment.moe.every else "")


def variants(experiment: Experiment, num_devices: int) -> tuple[list[Variant], list[Skipped]]:
    """The variants that the (small) experiment can be run in, and those that it cannot."""
    found: dict[str, Variant] = {}
    skipped: dict[str, Skipped] = {}
    for variant in _wanted(experiment, num_devices):
        if variant.devices > num_devices:
            reason: str | None = f"needs {variant.devices} devices"
        else:
            reason = _impossible(experiment, variant)
        if reason is None:
            found[variant.name] = variant
        else:
            skipped[variant.name] = Skipped(variant.name, reason)
    return list(found.values()), list(skipped.values())


def _impossible(experiment: Experiment, variant: Variant) -> str | None:
    problems = cross_check(variant.apply(experiment), variant.devices)
    return str(problems[0]) if problems else None


def _wanted(experiment: Experiment, num_devices: int) -> Iterator[Variant]:
    moe = experiment.moe
    if not moe.every:
        yield from _of_dense_model(experiment, num_devices)
        return
    own, transport = moe.layout, moe.transport
    if own == "dense":
        own = "slots_einsum" if moe.router.soft else "rows"
    if transport == "local":
        transport = "all_to_all"
    usual = Variant(layout=own)
    travel = Variant(layout=own, transport=transport)

    def on(variant: Variant, *meshes: dict[str, int]) -> Variant:
        return _on_first_possible(experiment, num_devices, variant, meshes)

    sizes = [size for size in range(num_devices, 1, -1) if num_devices % size == 0]
    for layout in LAYOUTS:
        if layout != "dense":
            yield Variant(layout=layout)
    yield replace(usual, dtype="bfloat16")
    yield replace(usual, accumulation=2)
    yield replace(usual, accumulation=4)
    for axis in ("data", "fsdp", "tensor", "sequence"):
        yield on(usual, *({axis: size} for size in sizes))
    yield on(travel, *({"expert": size} for size in sizes))
    spread = on(travel, {"data": 2, "expert": 4}, {"data": 2, "expert": 2}, {"expert": 2})
    yield spread
    for layout in LAYOUTS:
        for name in TRANSPORTS:
            pair = replace(spread, layout=layout, transport=name)
            if _impossible(experiment, pair) is None:
                yield pair
    yield replace(spread, overlap_chunks=2)
    for remat in REMAT_POLICIES:
        if remat != "none":
            yield replace(spread, remat=remat)
    remat = experiment.model.remat if experiment.model.remat != "none" else "full"
    mixed = replace(travel, accumulation=2, remat=remat)
    yield on(mixed, {"fsdp": 2, "expert": 2, "tensor": 2})
    yield on(mixed, {"data": 2, "expert": 2, "sequence": 2})


def _of_dense_model(experiment: Experiment, num_devices: int) -> Iterator[Variant]:
    def on(variant: Variant, *meshes: dict[str, int]) -> Variant:
        return _on_first_possible(experiment, num_devices, variant, meshes)

    usual = Variant(layout="")
    yield replace(usual, dtype="bfloat16")
    sizes = [size for size in range(num_devices, 1, -1) if num_devices % size == 0]
    yield replace(usual, accumulation=2)
    yield replace(usual, accumulation=4)
    for axis in AXES:
        yield on(usual, *({axis: size} for size in sizes))
    for remat in REMAT_POLICIES:
        if remat != "none":
            yield replace(usual, remat=remat)
    mixed = replace(usual, accumulation=2)
    yield on(mixed, {"fsdp": 2, "tensor": 2, "sequence": 2}, {"fsdp": 2, "tensor": 2})


def _on_first_possible(
    experiment: Experiment, num_devices: int, variant: Variant, meshes: Iterable[dict[str, int]]
) -> Variant:
    """The variant on the first of the meshes that the config can run on, else on the last."""
    for mesh in meshes:
        ordered = tuple((axis, mesh[axis]) for axis in AXES if axis in mesh)
        variant = replace(variant, mesh=ordered)
        if variant.devices <= num_devices and _impossible(experiment, variant) is None:
            break
    return variant
