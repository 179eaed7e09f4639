"""Topologies by name: "v5p:4x4x8", "h200:64"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from moe_jax.config.errors import UserError
from moe_jax.parallel.chips import CHIPS, Chip


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
