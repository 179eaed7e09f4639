"""What XLA is told beside the program, by platform, each option with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from moe_jax.config import xla_flags
from moe_jax.config.paths import home_cache

# Without it the TPU compiler runs every all-to-all alone. It takes more memory, because the buffers
# of two chunks live at once. Ragged all-to-alls stay synchronous (libtpu 0.0.42.1).
_TPU_OVERLAP = {"xla_tpu_enable_async_all_to_all": "true"}
# The links of v5e do not do it: there the option is a compiler's error.
_V5E = "TPU v5 lite"
# The fusion emitters were an option until jax 0.10; they doubled the time to compile.
_QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def step_options(device: Any, *, overlap: bool) -> dict[str, str] | None:
    """Compiler options of the training step; None: there are none.

    device: one of the mesh. overlap: communication is to run beside matrix products. (The GPU
    compiler schedules for that by itself; on CPU collectives are synchronous.)
    """
    can = device.platform == "tpu" and device.device_kind != _V5E
    return _TPU_OVERLAP if can and overlap else None


def quick_options(mesh: Mesh) -> dict[str, int | bool]:
    """Compiler options for a program that runs a few times on a few rows: the quick way of the
    compiler for CPU, as far as the installed one has it; elsewhere nothing."""
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    strange = xla_flags.unknown(f"--{name}={value}" for name, value in _QUICK.items())
    return {n: value for n, value in _QUICK.items() if f"--{n}={value}" not in strange}


def cache_folder() -> Path | None:
    """Where compiled programs are kept; None where they are not."""
    config: Any = jax.config  # which declares none of its settings
    folder = config.jax_compilation_cache_dir if config.jax_enable_compilation_cache else None
    return Path(folder) if folder else None


def keep_compiled_programs() -> None:
    """Programs that took a second to compile are kept for the next process that needs them.

    Where: `jax_compilation_cache_dir` (JAX_COMPILATION_CACHE_DIR), else ~/.cache/moe_jax/programs.
    JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing. To be called before the first computation.
    """
    config: Any = jax.config  # which declares none of its settings
    if config.jax_compilation_cache_dir is None:
        folder = home_cache() / "programs"
        config.update("jax_compilation_cache_dir", str(folder))
