"""What the check varies: the mesh, how tokens travel, micro-batches, what is computed again.

The set is kept small, because each variant is a program to compile: every mesh axis alone with the
config's own layout and transport; on one mesh every layout and every transport; every policy of
recomputation; and a few meshes and settings together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax.dispatch import LAYOUTS, TRANSPORTS
from moe_jax.models.decoder import REMAT_POLICIES
from moe_jax.parallel.mesh import AXES, MeshConfig
from moe_jax.routing.types import RouterInputs, SoftPlan
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
        for name, usual in (("overlap_chunks", 1), ("accumulation", 1), ("remat", "none")):
            if (value := getattr(self, name)) != usual:
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
            model=replace(e.model, remat=self.remat),
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
    if problems:
        return str(problems[0])
    if variant.layout not in ("", "dense", "slots_einsum") and _is_soft(experiment):
        return "this router mixes tokens into slots: layout slots_einsum only"
    return None


def _is_soft(experiment: Experiment) -> bool:
    """Whether the router gives a SoftPlan, by tracing it on a group of tokens."""
    moe, D = experiment.moe, experiment.model.model_dim
    T, E = moe.group_size or experiment.data.sequence_length, moe.num_experts

    def decide() -> Any:
        params = {
            name: jnp.zeros(spec.shape, jnp.float32)
            for name, spec in moe.router.params(D, E).items()
        }
        place_T = jnp.arange(T, dtype=jnp.int32)
        inputs = RouterInputs(
            x_TD=jnp.zeros((T, D)),
            valid_T=place_T >= 0,
            id_T=place_T,
            position_T=place_T,
            segment_T=place_T,
            key=jax.random.key(0),
            train=True,
        )
        return moe.router.route(params, moe.router.state(E), inputs)[0]

    return isinstance(jax.eval_shape(decide), SoftPlan)


def _wanted(experiment: Experiment, num_devices: int) -> Iterator[Variant]:
    moe = experiment.moe
    if not moe.every:
        yield from _of_dense_model(num_devices)
        return
    own, transport = moe.layout, moe.transport
    if own == "dense":
        own = "slots_einsum" if _is_soft(experiment) else "rows"
    if transport == "local":
        transport = "all_to_all"
    usual = Variant(layout=own)
    travel = Variant(layout=own, transport=transport)
    for layout in LAYOUTS:
        if layout != "dense":
            yield Variant(layout=layout)
    yield replace(usual, accumulation=2)
    yield replace(usual, accumulation=4)
    for axis in ("data", "fsdp", "tensor", "sequence"):
        yield _largest(experiment, num_devices, usual, axis)
    yield _largest(experiment, num_devices, travel, "expert")
    mesh = _fitting(num_devices, {"data": 2, "expert": 4}, {"data": 2, "expert": 2}, {"expert": 2})
    spread = replace(travel, mesh=mesh)
    yield spread
    layouts = [own, *(name for name in LAYOUTS if name not in ("dense", own))]
    transports = [transport, *(name for name in TRANSPORTS if name not in ("local", transport))]
    for other in transports[1:]:
        yield _first_possible(
            experiment, (replace(spread, transport=other, layout=name) for name in layouts)
        )
    for other in layouts[1:]:
        yield _first_possible(
            experiment, (replace(spread, layout=other, transport=name) for name in transports)
        )
    yield replace(spread, overlap_chunks=2)
    for remat in REMAT_POLICIES:
        if remat != "none":
            yield replace(spread, remat=remat)
    for more in ({"fsdp": 2, "tensor": 2}, {"data": 2, "sequence": 2}):
        mesh = _fitting(num_devices, {**more, "expert": 2})
        yield replace(travel, mesh=mesh, accumulation=2, remat=_own_remat(experiment))


def _of_dense_model(num_devices: int) -> Iterator[Variant]:
    yield Variant(layout="", accumulation=2)
    yield Variant(layout="", accumulation=4)
    for axis in ("data", "fsdp", "expert", "tensor", "sequence"):
        size = 2 if axis in ("tensor", "sequence") else num_devices
        yield Variant(mesh=((axis, size),), layout="")
    for remat in REMAT_POLICIES:
        if remat != "none":
            yield Variant(layout="", remat=remat)
    mesh = _fitting(num_devices, {"fsdp": 2, "tensor": 2, "sequence": 2}, {"fsdp": 2, "tensor": 2})
    yield Variant(mesh=mesh, layout="", accumulation=2)


def _own_remat(experiment: Experiment) -> str:
    return experiment.model.remat if experiment.model.remat != "none" else "full"


def _fitting(num_devices: int, *meshes: dict[str, int]) -> tuple[tuple[str, int], ...]:
    """The first of the meshes that is not too large, or the last one."""
    for mesh in meshes:
        variant = Variant(mesh=_ordered(mesh), layout="")
        if variant.devices <= num_devices:
            break
    return variant.mesh


def _ordered(mesh: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple((axis, mesh[axis]) for axis in AXES if axis in mesh)


def _first_possible(experiment: Experiment, choices: Iterable[Variant]) -> Variant:
    """The first that the config can run in, else the last."""
    several = list(choices)
    return next((v for v in several if _impossible(experiment, v) is None), several[-1])


def _largest(experiment: Experiment, num_devices: int, variant: Variant, axis: str) -> Variant:
    """The variant with as many devices along `axis` as the config can use."""
    sizes = [size for size in range(num_devices, 1, -1) if num_devices % size == 0]
    return _first_possible(experiment, (replace(variant, mesh=((axis, size),)) for size in sizes))
