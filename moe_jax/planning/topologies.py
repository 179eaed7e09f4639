"""Devices that are not here, for the compiler alone. Needs the extras `tpu` or `gpu-plan`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moe_jax.config import xla_flags
from moe_jax.planning.hardware import Topology

if TYPE_CHECKING:
    import jax

# A Hopper card for XLA's GPU compiler. Made from a public dump of an H100 (jax-ml/jax#28376) with
# the memory of each card, not dumped from a real H200.
_CUDA_TARGET = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536
  registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }} device_description_str: "NVIDIA {name}"
"""
EXTRAS = {"tpu": ("libtpu", "tpu"), "cuda": ("jax_cuda12_plugin", "gpu-plan")}


def prepare_environment() -> None:
    """To be called before JAX starts: only its compilers are wanted, no device of this machine."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # beside another compile or run
    # There is no metadata server to ask, and nothing to tune on.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    xla_flags.add("--xla_gpu_autotune_level=0", "--xla_gpu_shard_autotuning=false")


def missing_extra(topology: Topology) -> str | None:
    """The extra whose compiler is not installed; None where all is there."""
    module, extra = EXTRAS[topology.chip.platform]
    return None if importlib.util.find_spec(module) else extra


def absent_devices(topology: Topology) -> Sequence[jax.Device]:
    """The devices of a topology, to build a mesh of and compile for."""
    from jax.experimental import topologies

    if topology.chip.platform == "tpu":
        name = topology.name
        options: dict[str, Any] = (
            {} if min(topology.shape) > 1 else {"chips_per_host_bounds": (1,) * 3}
        )
        # A v4 chip has two cores, which the compiler takes together as one device.
        if name.startswith("v4"):
            options["chip_config_name"] = "megacore"
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    chip = topology.chip
    host = min(topology.devices, chip.host or topology.devices)
    target = _CUDA_TARGET.format(
        bandwidth=round(chip.memory_bandwidth),
        memory=round(chip.memory),
        name=topology.name.split(":")[0].upper(),
    )
    return topologies.get_topology_desc(
        platform="cuda",
        topology=f"1x{topology.devices // host}x{host}",
        target_config=target,
    ).devices
