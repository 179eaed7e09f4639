"""What clusters call the hardware of moe_jax.plan: chips, hosts and topology of a slice."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moe_jax.config.errors import UserError
from moe_jax.planning.hardware import Topology, topology_of


@dataclass(frozen=True, kw_only=True)
class Tpu:
    """gke: value of the node label. accelerator: prefix of the slice's name, which counts `cores`
    a chip. machine: of GKE's node pools, 4 chips a host. runtime: software version of TPU VMs."""

    gke: str
    accelerator: str
    cores: int
    machine: str
    runtime: str

    @property
    def shapes(self) -> dict[int, str]:
        """Of slices that are named by their size, by chips."""
        return CUBES if self.cores == 2 else FLAT


# cloud.google.com/kubernetes-engine/docs/concepts/tpus, cloud.google.com/tpu/docs
TPUS = {
    "v4": Tpu(
        gke="tpu-v4-podslice",
        accelerator="v4",
        cores=2,
        machine="ct4p-hightpu-4t",
        runtime="tpu-ubuntu2204-base",
    ),
    "v5e": Tpu(
        gke="tpu-v5-lite-podslice",
        accelerator="v5litepod",
        cores=1,
        machine="ct5lp-hightpu-4t",
        runtime="v2-alpha-tpuv5-lite",
    ),
    "v5p": Tpu(
        gke="tpu-v5p-slice",
        accelerator="v5p",
        cores=2,
        machine="ct5p-hightpu-4t",
        runtime="v2-alpha-tpuv5",
    ),
    "v6e": Tpu(
        gke="tpu-v6e-slice",
        accelerator="v6e",
        cores=1,
        machine="ct6e-standard-4t",
        runtime="v2-alpha-tpuv6e",
    ),
}
GPUS = {"h100": "nvidia-h100-mega-80gb", "h200": "nvidia-h200-141gb"}  # GKE's node label
CHIPS_PER_HOST = 4  # of the TPU machines above
FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
}


@dataclass(frozen=True)
class Slice:
    """A TPU slice, or GPU nodes behind one network."""

    topology: Topology

    @property
    def kind(self) -> str:
        return self.topology.name.partition(":")[0]

    @property
    def tpu(self) -> Tpu | None:
        """None for GPUs."""
        return TPUS.get(self.kind)

    @property
    def chips(self) -> int:
        return self.topology.devices

    @property
    def chips_per_host(self) -> int:
        most = CHIPS_PER_HOST if self.tpu else self.topology.chip.host or 1
        return min(self.chips, most)

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def shape(self) -> str:
        """ "4x4x4": of the torus."""
        return "x".join(map(str, self.topology.shape))

    @property
    def accelerator(self) -> str:
        """The slice's name for Cloud TPU and xpk ("v5p-128" is 64 chips of 2 cores), or that of
        one GPU node for xpk."""
        if self.tpu is None:
            return f"{GPUS[self.kind].removeprefix('nvidia-')}-{self.topology.chip.host}"
        return f"{self.tpu.accelerator}-{self.chips * self.tpu.cores}"

    @property
    def usual(self) -> bool:
        """Whether `accelerator`, which tells only the size, stands for this shape."""
        return self.tpu is None or self.tpu.shapes.get(self.chips) == self.shape


def slice_of(name: str) -> Slice:
    """The slice of a name of moe_jax.plan ("v5e:16x16", "h200:64") or of Cloud TPU ("v5e-256",
    "v5litepod-256", "v5p-128", which counts cores). UserError where it is not offered."""
    match = re.fullmatch(r"(\w+)-(\d+)", name)
    if match is None:
        found = Slice(topology_of(name))
    else:
        kind = "v5e" if match[1] == "v5litepod" else match[1]
        if kind not in TPUS:
            raise UserError(f"--topology={name}: there are {', '.join(TPUS)}; GPUs: h200:64")
        shapes = TPUS[kind].shapes
        chips = int(match[2]) // TPUS[kind].cores
        if chips not in shapes:
            sizes = ", ".join(f"{match[1]}-{n * TPUS[kind].cores}" for n in shapes)
            raise UserError(f"--topology={name}: no such slice; there are {sizes}")
        found = Slice(topology_of(f"{kind}:{shapes[chips]}"))
    if found.tpu is not None and found.chips % CHIPS_PER_HOST and found.chips > CHIPS_PER_HOST:
        raise UserError(f"--topology={name}: {found.chips} chips do not fill hosts of 4")
    if found.tpu is None and found.kind not in GPUS:
        raise UserError(f"--topology={name}: there are {', '.join([*TPUS, *GPUS])}")
    return found
