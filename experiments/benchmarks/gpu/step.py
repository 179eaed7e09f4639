"""A training step of about 1B active parameters in bfloat16: its speed, its MFU, where its time
goes, and how long the device waits for the host."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.gpu.stage import StageReport, profiled
from experiments.benchmarks.steps import program_of
from moe_jax.parallel.chips import peak_flops
from moe_jax.training.build import Program

# 1.0B of 2.8B parameters are active.
SIZE = dict(D=2048, F=3072, L=16, E=8, k=2, V=32768, N=16, H=128, S=2048)
TINY = dict(D=64, F=96, L=2, E=8, k=2, V=512, N=2, H=32, S=128)
# GiB of parameters, moments and gradients in float32, and of what the backward pass keeps of a row:
# read off programs compiled for an H100. Compiling to find out would take half of the stage.
STATE_GIB, ROW_GIB = 42.0, 7.0
ROWS = (8, 6, 4, 3, 2, 1)  # of 2048 tokens
SHARE = 0.93  # of the memory that may be planned with
GIB = 2**30
STEPS, PROFILED = 12, 3
DATA_SHEET = "data sheet, dense bfloat16"


def run(report: StageReport, argument: str, tiny: bool) -> None:
    size = TINY if tiny else SIZE
    for rows in (2,) if tiny else fitting_rows(jax.devices()[0]):
        name = f"{rows} rows"
        with report.part(name):
            measure(report, {**size, "B": rows}, 3 if tiny else STEPS)
        if name not in report.failed:
            # A batch that did not fit is told among the errors; the stage has done its work.
            report.failed.clear()
            return


def measure(report: StageReport, size: dict[str, int], steps: int) -> None:
    """Steps one after the other, as the loop makes them: a new batch each, nothing waited for."""
    program = in_bfloat16(size)
    device = jax.devices()[0]
    counts = program.counts
    tokens = size["B"] * size["S"]
    work = counts.flops_per_token * tokens
    report.add(size=size, parameters=counts.total, active=counts.active, gflop=1e-9 * work)
    batches = [batch(program, size, seed) for seed in range(4)]
    start = time.perf_counter()
    scalars = program.scalars(0)
    lowered = program.train_step.lower(program.abstract_state, batches[0], scalars)
    compiled = lowered.compile()
    report.add(compile_seconds=time.perf_counter() - start, memory_gib=needed(compiled) / GIB)
    holder: dict[str, Any] = {"state": program.init()}

    def run(count: int) -> None:
        result = None
        for step in range(count):
            raw = batches[step % len(batches)]
            holder["state"], result = compiled(holder["state"], raw, program.scalars(step))
        jax.block_until_ready((holder["state"], result))
        holder["loss"] = float(result.loss)

    run(2)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run(steps // 3)
        times.append((time.perf_counter() - start) / (steps // 3))
    seconds, peak = statistics.median(times), peak_flops(device.device_kind, "bfloat16")
    report.add(
        ms=1e3 * seconds,
        tokens_per_second=tokens / seconds,
        tflop_per_second=1e-12 * work / seconds,
        mfu=work / seconds / peak if peak else None,
        peak=f"{1e-12 * peak:.0f} TFLOP/s ({DATA_SHEET})" if peak else "not known",
        loss=holder["loss"],
    )
    # Last: whatever the profiler does, the figures above are written.
    report.add(profile=profiled(lambda: run(PROFILED), PROFILED, compiled.as_text() or ""))


def in_bfloat16(size: dict[str, int]) -> Program:
    """The benchmark's training step with products in bfloat16; parameters stay in float32."""
    return program_of(size, dtype="bfloat16")


def batch(program: Program, size: dict[str, int], seed: int) -> Any:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, size["V"], (size["B"], size["S"] + 1)).astype(np.int32)
    return program.put({"tokens": tokens, "segments": np.ones_like(tokens)})


def fitting_rows(device: jax.Device) -> tuple[int, ...]:
    """Numbers of rows by estimate, largest first, and each smaller one should it be wrong."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    room = SHARE * limit / GIB if limit else 0.0
    return tuple(rows for rows in ROWS if STATE_GIB + ROW_GIB * rows <= room) or ROWS[-1:]


def needed(compiled: Any) -> int:
    """Bytes that the step needs. The state is donated: what comes out lies where it was."""
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes
