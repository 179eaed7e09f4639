"""The training step of a run, compiled for hardware that is not here."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from moe_jax.config.activity import doing
from moe_jax.parallel.collectives import Collective, collectives
from moe_jax.parallel.compat import lowering_for
from moe_jax.parallel.mesh import AXES
from moe_jax.training.build import Program, build
from moe_jax.training.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Collectives of one kind over the same axes: executions and bytes sent per step and device.

    asynchronous: those of `times` that other work may run beside.
    beside_products: those of `times` that the schedule puts beside matrix products.
    """

    op: str
    axes: tuple[str, ...]
    times: int
    bytes_sent: float
    asynchronous: int
    beside_products: int


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler says of one device. Memory in bytes; the state is donated, so that
    peak = arguments + temporaries + outputs that are not arguments again.

    flops_once: XLA's count, in which the body of a loop counts once (None on GPU).
    refused: the compiler's words where it found no place (TPU), or cannot do what the program asks
    for on this hardware; all else is then 0.
    """

    seconds: float
    arguments: int = 0
    temporaries: int = 0
    outputs: int = 0
    flops_once: float | None = None
    sent: tuple[Sent, ...] = ()
    refused: str | None = None
    needed: float | None = None  # bytes, where the compiler told
    available: float | None = None

    @property
    def peak(self) -> float:
        if self.refused:
            return self.needed or float("inf")
        return self.arguments + self.temporaries + self.outputs


def lower_step(program: Program) -> Any:  # a Lowered, none of whose analyses is None here
    """The training step of a program, lowered on shapes alone."""
    with lowering_for(program.mesh.devices.flat[0]):
        return program.train_step.lower(
            program.abstract_state, program.abstract_batch(), program.scalars(0)
        )


def compile_step(experiment: Experiment, devices: Sequence[jax.Device]) -> Compiled:
    """Builds, lowers and compiles; that the compiler refuses is a result, not an error."""
    start = time.perf_counter()
    with doing("tracing the training step"):
        program = build(experiment, experiment.stand_in(), devices=devices)
        lowered = lower_step(program)
    try:
        with doing(f"compiling the training step for {len(devices)} x {devices[0].device_kind}"):
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if not re.search("RESOURCE_EXHAUSTED|UNIMPLEMENTED|not supported", message):
            raise
        needed, available = memory_of(message)
        return Compiled(
            seconds=time.perf_counter() - start,
            refused=message.splitlines()[0],
            needed=needed,
            available=available,
        )
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    return Compiled(
        seconds=time.perf_counter() - start,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0),
        flops_once=cost.get("flops"),
        sent=_by_kind(compiled.as_text(), program.mesh),
    )


def _by_kind(text: str, mesh: Mesh) -> tuple[Sent, ...]:
    kinds: dict[tuple[str, tuple[str, ...]], list[Collective]] = {}
    for c in collectives(text, mesh):
        kinds.setdefault((c.op, tuple(axis for axis in AXES if axis in c.axes)), []).append(c)
    found = [
        Sent(
            op=op,
            axes=axes,
            times=sum(c.times for c in same),
            bytes_sent=sum(c.bytes_sent * c.times for c in same),
            asynchronous=sum(c.times for c in same if c.asynchronous),
            beside_products=sum(c.times for c in same if c.beside),
        )
        for (op, axes), same in kinds.items()
    ]
    return tuple(sorted(found, key=lambda sent: -sent.bytes_sent))


def memory_of(message: str) -> tuple[float | None, float | None]:
    """(needed, available) bytes of the TPU compiler's message."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", message)
    if not found:
        return None, None
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(found[1]) * unit[found[2]], float(found[3]) * unit[found[4]]
