"""What XLA is told beside the program, by platform, each option with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

# Without it the TPU compiler runs every all-to-all alone. It takes more memory, because the buffers
# of two chunks live at once. Ragged all-to-alls stay synchronous (libtpu 0.0.42.1).
_TPU_OVERLAP = {"xla_tpu_enable_async_all_to_all": "true"}
# The links of v5e do not do it: there the option is a compiler's error.
_V5E = "TPU v5 lite"


def step_options(device: Any, *, overlap: bool) -> dict[str, str] | None:
    """Compiler options of the training step; None: there are none.

    device: one of the mesh. overlap: communication is to run beside matrix products. (The GPU
    compiler schedules for that by itself; on CPU collectives are synchronous.)
    """
    can = device.platform == "tpu" and device.device_kind != _V5E
    return _TPU_OVERLAP if can and overlap else None


def keep_compiled_programs() -> None:
    """Programs that took a second to compile are kept for the next process that needs them.

    Where: `jax_compilation_cache_dir` (JAX_COMPILATION_CACHE_DIR), else ~/.cache/moe_jax/programs.
    JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing. To be called before the first computation.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is None:
        folder = Path("~/.cache/moe_jax/programs").expanduser()
        config.update("jax_compilation_cache_dir", str(folder))
