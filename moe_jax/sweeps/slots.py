"""The shares of this machine that runs side by side get: processor cores and GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_jax.sweeps import enter

GPUS = "CUDA_VISIBLE_DEVICES"
ENTER = Path(enter.__file__)


@dataclass(frozen=True)
class Slot:
    """What one of the runs may use. cores: empty for all of them; gpus: None where there are none
    or all may be used."""

    cores: tuple[int, ...] = ()
    gpus: tuple[str, ...] | None = None

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        found = {**inherited, "PYTHONUNBUFFERED": "1"}
        return found if self.gpus is None else {**found, GPUS: ",".join(self.gpus)}

    def command(self, command: Sequence[str]) -> list[str]:
        """The command on these cores, ended when this process dies."""
        cores = ",".join(map(str, self.cores))
        return [sys.executable, "-S", str(ENTER), cores, str(os.getpid()), *command]


def slots(workers: int) -> list[Slot]:
    """Equal shares of the cores that this process may use, and of the GPUs; all of them for one
    worker. With more workers than cores (or GPUs), they are dealt out in turn."""
    if workers == 1:
        return [Slot()]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = visible_gpus()
    return [
        Slot(
            cores=tuple(_share(cores, worker, workers)),
            gpus=tuple(_share(gpus, worker, workers)) if gpus else None,
        )
        for worker in range(workers)
    ]


def _share(things: Sequence, worker: int, workers: int) -> Sequence:
    if len(things) < workers:
        return [things[worker % len(things)]] if things else []
    return things[worker * len(things) // workers : (worker + 1) * len(things) // workers]


def visible_gpus() -> list[str]:
    """Names of the GPUs, as the environment or nvidia-smi tells them."""
    if (named := os.environ.get(GPUS)) is not None:
        return [name for name in named.split(",") if name]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()
