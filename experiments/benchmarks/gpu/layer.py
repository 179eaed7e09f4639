"""A sparse layer in bfloat16 beside dense and PyTorch, at a known model's size, and where its time
goes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.gpu.stage import StageReport, profiled
from experiments.benchmarks.layers import (
    LAYOUTS,
    Arm,
    Arrays,
    Case,
    both,
    dense,
    dense_params,
    even_arm,
    layer_arm,
)
from experiments.benchmarks.peers import TorchPeer, available
from experiments.benchmarks.timing import MIB, TimedProgram, compiled

TOKENS = 16384
# D, F, E, k of Mixtral 8x7B, OLMoE-1B-7B and DeepSeekMoE 16B (routed experts).
SIZES = {
    "mixtral": (4096, 14336, 8, 2),
    "olmoe": (2048, 1024, 64, 8),
    "deepseek": (2048, 1408, 64, 6),
}
TINY = {"mixtral": (64, 128, 8, 2), "olmoe": (64, 32, 16, 4), "deepseek": (64, 48, 16, 3)}
TARGETS = {8: 0.85, 64: 0.75}  # of the dense layer's speed, by experts
PASSES = ("forward", "both")
# What is asked first is timed and profiled first.
FIRST, THEN = ("dense", "rows"), ("even", "slots_scatter")
ROUND, ROUNDS = 0.03, 15  # seconds of one arm in a round at the least; rounds at the most
SECONDS = 8.0  # of timing all arms in turns


def run(report: StageReport, argument: str, tiny: bool) -> None:
    """Ours and dense, their profiles, then PyTorch's and the other arms beside them again: what
    is sure comes first, and nothing else is on the card while a profile is taken."""
    D, F, E, k = (TINY if tiny else SIZES)[argument]
    case = Case(1024 if tiny else TOKENS, D, F, E, k, "bfloat16", "random")
    report.add(case=dataclasses.asdict(case), gflop=1e-9 * case.flops, target=TARGETS.get(E))
    arrays = drawn(case)
    programs: dict[tuple[str, str], TimedProgram] = {}
    compile_arms(report, FIRST, case, arrays, programs)
    measure(report, case, programs, {}, 0.0 if tiny else SECONDS / 3)
    profiles: dict[str, Any] = {}
    for name in FIRST:
        with report.part(f"profile of {name}"):
            program = programs[name, "both"]
            profiles[name] = profiled(lambda p=program: timer(p)(3), 3, program.text)
            report.add(profiles=profiles)
    if not available():
        report.add(torch="is not installed")
    peer = TorchPeer(None, dataclasses.asdict(case)) if available() else None
    try:
        # While PyTorch gets ready. The loop over experts stands in where the kernels failed.
        others = THEN if ("rows", "both") in programs else ("blocks", *THEN)
        compile_arms(report, others, case, arrays, programs)
        with report.part("torch"):
            calls = torch_calls(peer) if peer else {}
            measure(report, case, programs, calls, 0.0 if tiny else SECONDS)
    finally:
        if peer:
            peer.end()


Call = Callable[[int], float]


def compile_arms(
    report: StageReport,
    names: Sequence[str],
    case: Case,
    arrays: Arrays,
    programs: dict[tuple[str, str], TimedProgram],
) -> None:
    for name in names:
        with report.part(name):
            programs |= compile_arm(name, case, arrays)


def torch_calls(peer: TorchPeer) -> dict[tuple[str, str], Call]:
    """Waits for PyTorch. Its eager experts are far slower and left out."""
    return {
        (arm, passes): lambda count, arm=arm, passes=passes: peer.run(arm, passes, count)
        for arm in peer.arms
        if arm != "hf eager"
        for passes in PASSES
    }


def measure(
    report: StageReport,
    case: Case,
    programs: Mapping[tuple[str, str], TimedProgram],
    others: Mapping[tuple[str, str], Call],
    seconds: float,
) -> None:
    """Times all of them in turns."""
    calls = {key: timer(program) for key, program in programs.items()}
    report.add(arms=figures(rounds({**calls, **others}, seconds), programs))
    report_targets(report, case)


def report_targets(report: StageReport, case: Case) -> None:
    """Forward + backward: our share of dense, and our speed over PyTorch's grouped product."""
    arms = report.found["arms"]
    if "rows/both" not in arms:
        return
    ours = arms["rows/both"]["ms"]
    found = {"of_dense": arms["dense/both"]["ms"] / ours} if "dense/both" in arms else {}
    if "hf grouped_mm/both" in arms:
        found["of_torch"] = arms["hf grouped_mm/both"]["ms"] / ours
    found["tflop_per_second"] = 1e-9 * case.flops / ours
    report.add(rows=found)


def drawn(case: Case) -> Arrays:
    """Random arrays, drawn where they are used: those of Mixtral are 3 GB."""
    T, D, F, E = case.T, case.D, case.F, case.E

    @jax.jit
    def draw(key: jax.Array) -> list[jax.Array]:
        shapes = ((T, D), (T, D), (D, E), (E, D, F), (E, D, F), (E, F, D))
        keys = jax.random.split(key, len(shapes))
        scales = (1.0, 1.0, D**-0.5, D**-0.5, D**-0.5, F**-0.5)
        return [
            (scale * jax.random.normal(key, shape, jnp.bfloat16)).astype(
                jnp.float32 if shape == (D, E) else jnp.dtype(case.dtype)
            )
            for key, shape, scale in zip(keys, shapes, scales, strict=True)
        ]

    return Arrays(*draw(jax.random.key(0)))


def compile_arm(name: str, case: Case, arrays: Arrays) -> dict[tuple[str, str], TimedProgram]:
    """One arm, compiled for both passes and run once."""
    params: Any = arrays.params
    arm: Arm
    if name == "dense":
        arm, params = dense, dense_params(case)
    elif name == "even":
        arm = even_arm(case)
    else:
        arm = layer_arm(case, **LAYOUTS[name])
    return {
        (name, "both"): compiled(both(arm), params, arrays.x_TD, arrays.dy_TD),
        (name, "forward"): compiled(arm, params, arrays.x_TD),
    }


def timer(program: TimedProgram) -> Call:
    """Seconds of one run among `count` that the device makes without waiting for the host."""

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            result = program.start()
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / count

    return run


def rounds(
    starts: Mapping[tuple[str, str], Call], seconds: float
) -> dict[tuple[str, str], list[float]]:
    """Seconds of one run, of every arm in every round, for about so long. One round at least, after
    one run of each that tells how many fill a round (with no seconds: one)."""
    end = time.perf_counter() + seconds
    least = ROUND if seconds else 0.0
    counts = {key: int(np.clip(least / max(run(1), 1e-6), 1, 20)) for key, run in starts.items()}
    found: dict[tuple[str, str], list[float]] = {key: [] for key in starts}
    for _ in range(ROUNDS):
        for key, run in starts.items():
            found[key].append(run(counts[key]))
        if time.perf_counter() > end:
            break
    return found


def figures(
    seconds: Mapping[tuple[str, str], list[float]], programs: Mapping[tuple[str, str], TimedProgram]
) -> dict[str, dict[str, float]]:
    """Medians by "ARM/PASSES"; shares of dense are medians over rounds."""
    found = {}
    for (name, passes), times in seconds.items():
        cell = {"ms": 1e3 * float(np.median(times)), "rounds": len(times)}
        if reference := seconds.get(("dense", passes)):
            cell["of_dense"] = float(np.median(np.divide(reference, times)))
        if program := programs.get((name, passes)):
            cell["temporary_mib"] = program.temporary_bytes / MIB
            cell["compile_seconds"] = program.compile_seconds
        found[f"{name}/{passes}"] = cell
    return found
