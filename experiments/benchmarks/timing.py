"""What the benchmarks share: compiled calls, interleaved repeats, and the machine's own limits."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MIB = 2**20
PAUSE = 0.02


@dataclass(frozen=True)
class TimedProgram:
    """A program that has run once, with what its compiler says of it.

    compile_seconds: tracing, lowering and compiling. temporary_bytes: of the largest moment beside
    arguments and outputs.
    """

    call: Callable[[], Any]
    start: Callable[[], Any]  # without waiting for the device
    text: str  # of the compiled program
    compile_seconds: float
    temporary_bytes: int
    argument_bytes: int
    output_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.temporary_bytes + self.argument_bytes + self.output_bytes


def compiled(function: Callable[..., Any], *arguments: Any) -> TimedProgram:
    """Compiles for these arguments and runs once."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    jax.block_until_ready(program(*arguments))
    memory: Any = program.memory_analysis()
    return TimedProgram(
        call=lambda: jax.block_until_ready(program(*arguments)),
        start=lambda: program(*arguments),
        text=program.as_text() or "",
        compile_seconds=seconds,
        temporary_bytes=memory.temp_size_in_bytes,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
    )


def interleaved(
    run: Mapping[Any, Callable[[], Any]], repeats: int, warm: bool = False
) -> dict[Any, np.ndarray]:
    """For each call (repeats, 2): seconds by the clock, seconds of all processors.

    Every repeat runs all calls, so that what disturbs the machine disturbs all of them. A call that
    returns a float has timed itself (in another process). Before each there is a pause, in which
    threads that wait by spinning go to sleep. warm: each call is made twice, the second is timed,
    for calls with much memory of their own that the system may have put aside in between.
    """
    seconds: dict[Any, list[tuple[float, float]]] = {name: [] for name in run}
    for _ in range(repeats):
        for name, call in run.items():
            time.sleep(PAUSE)
            if warm:
                call()
            start = time.perf_counter(), time.process_time()
            own = call()
            took = time.perf_counter() - start[0], time.process_time() - start[1]
            seconds[name].append((own, own) if isinstance(own, float) else took)
    return {name: np.array(times) for name, times in seconds.items()}


def limits() -> tuple[dict[str, Callable[[], Any]], Callable[[Mapping[str, float]], dict]]:
    """Calls that measure the machine, and what turns their seconds into rates.

    peak: a float32 matmul of 2048^3, in FLOP/s. bandwidth: b = a + 1 over arrays of 256 MiB, which
    no cache holds, in bytes read and written a second.
    """
    n, size = 2048, 64 * MIB
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (n, n)) for key in keys)
    long = jnp.zeros((size,), jnp.float32)
    calls = {
        "peak": compiled(jnp.matmul, a, b).call,
        "bandwidth": compiled(lambda x: x + 1, long).call,
    }

    def rates(seconds: Mapping[str, float]) -> dict[str, float]:
        return {
            "peak_flops": 2 * n**3 / seconds["peak"],
            "bandwidth": 2 * 4 * size / seconds["bandwidth"],
        }

    return calls, rates


def add_results(path: Path, results: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Writes results to a JSON file; those in it of the same keys are replaced, others stay."""

    def key(result: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(result[name] for name in keys)

    new = {key(result) for result in results}
    old = json.loads(path.read_text("utf-8"))["results"] if path.exists() else []
    merged = [*(result for result in old if key(result) not in new), *results]
    text = json.dumps({"machine": machine(), "results": merged}, indent=1)
    path.write_text(text + "\n", "utf-8")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    device = jax.devices()[0]
    name = device.device_kind
    info = Path("/proc/cpuinfo")
    if device.platform == "cpu" and info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else platform.processor()
    return {
        "device": name,
        "platform": device.platform,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
