"""The compiler flags that a run is started with, by platform, each with its reason.

Few, and only where the default was no choice: a flag costs everyone who reads a profile. TPU flags
go into LIBTPU_INIT_ARGS, those of GPUs into XLA_FLAGS. That the compilers know every flag here is
tested, and a run refuses with one message what its XLA does not know (moe_jax/config/xla_flags.py);
what it gains is not, as no accelerator was at hand: measure on yours, and take out what
does not pay. What only some programs or chips can do (asynchronous all-to-alls: not on v5e pods) is
no flag here, but an option of the program, in moe_jax/parallel/compiler.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moe_jax.config.xla_flags import known


@dataclass(frozen=True)
class Flag:
    name: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"--{self.name}={self.value}"


TPU = (
    Flag(
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
        "true",
        "gathers of weights over fsdp run beside the products of the layer before",
    ),
    Flag(
        "xla_enable_async_collective_permute",
        "true",
        "what the partitioner turns into a ring must not stop the matrix units",
    ),
)
TPU_SLICES = (
    Flag(
        "xla_tpu_enable_data_parallel_all_reduce_opt",
        "true",
        "sums of gradients over the slow network between slices overlap the backward pass",
    ),
    Flag(
        "xla_tpu_data_parallel_opt_different_sized_ops",
        "true",
        "the same for gradients of different sizes, as those of experts and of the rest are",
    ),
)
GPU = (
    Flag(
        "xla_gpu_enable_latency_hiding_scheduler",
        "true",
        "collectives start as early and end as late as their data allow; off by default",
    ),
    Flag(
        "xla_gpu_all_gather_combine_threshold_bytes",
        "134217728",
        "small gathers of weights go together: one start of NCCL a layer",
    ),
    Flag(
        "xla_gpu_reduce_scatter_combine_threshold_bytes",
        "134217728",
        "the same for gradients",
    ),
)
VARIABLES = {"tpu": "LIBTPU_INIT_ARGS", "cuda": "XLA_FLAGS"}


def flags(platform: str, slices: int = 1) -> tuple[Flag, ...]:
    """Those of a platform ("tpu", "cuda"); slices: TPU slices joined by the slower network."""
    if platform == "tpu":
        return TPU + (TPU_SLICES if slices > 1 else ())
    return GPU if platform == "cuda" else ()


def variables(platform: str, slices: int = 1) -> dict[str, str]:
    """The environment variable that holds the flags; none for a platform without."""
    chosen = flags(platform, slices)
    return {VARIABLES[platform]: " ".join(map(str, chosen))} if chosen else {}


def merged(inherited: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Both environments; the user's own compiler flags stand last, and count. Of ours those that
    the XLA installed here does not know are left out, with a line on stderr each."""
    own = dict(own)
    if "XLA_FLAGS" in own:
        own["XLA_FLAGS"] = " ".join(known(own["XLA_FLAGS"].split()))
    both = {name: inherited[name] for name in VARIABLES.values() if name in own.keys() & inherited}
    return {**inherited, **own, **{name: f"{own[name]} {theirs}" for name, theirs in both.items()}}
