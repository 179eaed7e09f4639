"""What differs between the releases of JAX that are supported; nothing else asks for a version.

Where one way works on all of them, that way is taken and stands where it is needed. Which XLA flags
a release knows is asked of XLA itself (config/xla_flags.py).
"""

from __future__ import annotations

import contextlib
import inspect
from contextlib import AbstractContextManager
from typing import Any

from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh


def lowering_for(device: Any) -> AbstractContextManager[object]:
    """The context in which a program is lowered for a device that may not be here.

    From jax 0.11 on, Pallas kernels for GPUs are lowered for the device of the context, and
    refused where that is the CPU of this machine. jax 0.10 takes the platform alone.
    """
    if device.platform not in ("gpu", "cuda", "rocm"):
        return contextlib.nullcontext()
    return lowering_for_gpu(device.device_kind)


def lowering_for_gpu(kind: str) -> AbstractContextManager[object]:
    """The same by the kind alone, as "NVIDIA H200"."""
    # The platform was a field of its own in jax 0.10.
    own = {"platform": "gpu"} if "platform" in inspect.signature(AbstractDevice).parameters else {}
    device: Any = AbstractDevice(device_kind=kind, num_cores=None, **own)
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """(constants, carries) of a `scan` equation, the first of its body's arguments."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    # jax 0.12 keeps the arguments' tree: constants, carries, scanned arrays.
    consts, carries, _ = params["ft_in"].unpack()
    return len(consts), len(carries)
