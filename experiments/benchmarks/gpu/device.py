"""What the machine is, how fast it can be, and its target config for compiling without it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.gpu.stage import StageReport
from experiments.benchmarks.timing import MIB, machine

PACKAGES = (
    *("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax", "chex"),
    *("orbax-checkpoint", "grain", "tensorflow-datasets", "tensorboardX", "ml_collections"),
    *("numpy", "torch", "triton", "transformers"),
)
DUMP = "import jax; jax.jit(lambda x: x @ x)(jax.numpy.ones((256, 256))).block_until_ready()"
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"


def run(report: StageReport, argument: str, tiny: bool) -> None:
    device = jax.devices()[0]
    memory = device.memory_stats() or {}
    report.add(
        machine=machine(),
        versions=versions(),
        devices=[str(one) for one in jax.devices()],
        compute_capability=str(getattr(device, "compute_capability", "")),
        memory_limit=memory.get("bytes_limit"),
    )
    with report.part("nvidia-smi"):
        report.add(nvidia_smi=asked())
    with report.part("target config"):
        report.add(target_config=target_config(on_gpu=device.platform == "gpu"))
    with report.part("rates"):
        report.add(rates=rates(512 if tiny else 8192, (16 if tiny else 1024) * MIB))


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def asked() -> str:
    """What the driver says of the card; nothing is set."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except FileNotFoundError:
        return "there is no nvidia-smi"
    return done.stdout.strip() or done.stderr.strip()[:500]


def target_config(on_gpu: bool) -> str | None:
    """The card for XLA's compiler, as XLA itself writes it; None without a card.

    A process of its own dumps it: should XLA not know the flag, only that process ends.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder}".strip()
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "0"}
        command = [sys.executable, "-c", DUMP]
        subprocess.run(command, env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL)
        # One for every module, all alike.
        files = sorted(Path(folder).rglob("*target_config*"))
        if not files and on_gpu:
            raise RuntimeError(f"no target config among {len(os.listdir(folder))} dumped files")
        return files[0].read_text("utf-8") if files else None


def rates(n: int, size: int, runs: int = 10) -> dict[str, float]:
    """Products of n^3 in FLOP/s by type, and bytes read and written a second by b = a + 1."""
    found = {}
    for dtype in ("bfloat16", "float32"):
        keys = jax.random.split(jax.random.key(0))
        a, b = (jax.random.normal(key, (n, n), dtype) for key in keys)
        found[f"matmul_{dtype}_flops"] = 2 * n**3 / _seconds(jax.jit(jnp.matmul), (a, b), runs)
    long = jnp.zeros((size // 4,), jnp.float32)
    found["bandwidth"] = 2 * size / _seconds(jax.jit(lambda x: x + 1), (long,), runs)
    return found


def _seconds(function: Any, arguments: tuple[Any, ...], runs: int) -> float:
    """Of one call among many that wait for each other on the device alone."""
    for _ in range(2):
        jax.block_until_ready(function(*arguments))
    start = time.perf_counter()
    for _ in range(runs):
        result = function(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / runs
