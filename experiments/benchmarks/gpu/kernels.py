"""Where a device's time goes, from a trace of JAX's profiler: kinds of kernels, and idle gaps.

Kernels are the events on a GPU's streams; in a trace of the CPU, where the script is tried out,
the operations of XLA on its threads. An event's own time is what no event within it covers. A
kernel's kind comes from the compiled program where it names the kernel, else from the name alone.
Only the standard library is needed.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GROUPED, ATTENTION, GEMM = "grouped product", "attention", "gemm"
MOVES, REDUCTION, ELEMENTWISE = "sort, scatter, gather", "reduction", "elementwise"
COPY, COLLECTIVE, OTHER = "memcpy", "collective", "other"
KINDS = (GROUPED, GEMM, ATTENTION, MOVES, REDUCTION, ELEMENTWISE, COPY, COLLECTIVE, OTHER)
# The first that fits counts. Names of XLA's operations, of its fusions, and of CUDA's libraries.
NAMES = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        (
            COLLECTIVE,
            r"nccl|all.?reduce|all.?gather|reduce.?scatter|all.?to.?all|collective.?permute",
        ),
        (COPY, r"memcpy|memset|^copy|wrapped_copy"),
        (GROUPED, r"grouped_(rows|matrices|mm)|ragged.?dot|gmm|groupproblem"),
        (ATTENTION, r"attention|flash|fmha|mha_"),
        (GEMM, r"gemm|gemv|nvjet|cutlass|xmma|cublas|matmul|dot|convolution|ynn|xnn|onednn"),
        (MOVES, r"sort|scatter|gather|radix|dynamic.?(update.?)?slice|permute"),
        (REDUCTION, r"reduc|cumsum|scan"),
        (ELEMENTWISE, r"fusion|wrapped|elementwise|broadcast|convert|transpose|select|iota|pad"),
    )
)
# What a fusion is called after, most telling first: opcodes of the operations in it.
OPCODES = (
    (GEMM, {"dot", "convolution"}),
    (MOVES, {"sort", "scatter", "gather", "dynamic-update-slice", "dynamic-slice"}),
    (REDUCTION, {"reduce", "reduce-window"}),
)
GAP_MS = 0.01  # shorter ones are the time that any launch takes


@dataclass(frozen=True)
class Kernel:
    """One event of a device; microseconds."""

    name: str
    start: float
    length: float
    lane: tuple[int, int]
    operation: str = ""

    @property
    def end(self) -> float:
        return self.start + self.length


def newest_trace(folder: Path) -> Path | None:
    """The trace that the profiler wrote last below a folder."""
    found = sorted(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def read_kernels(file: Path) -> list[Kernel]:
    """The device's events by their start: of streams, else of XLA's operations on the host."""
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        events = json.load(stream)["traceEvents"]
    process: dict[int, str] = {}
    thread: dict[tuple[int, int], str] = {}
    for event in events:
        if event.get("name") == "process_name":
            process[event["pid"]] = event["args"]["name"]
        elif event.get("name") == "thread_name":
            thread[event["pid"], event["tid"]] = event["args"]["name"]
    devices = {pid for pid, name in process.items() if name.startswith("/device:")}
    # A device's other lanes repeat the same time by module, step and operation.
    streams = {lane for lane, name in thread.items() if lane[0] in devices and "Stream" in name}
    streams = streams or {
        lane for lane, name in thread.items() if lane[0] in devices and name == "XLA Ops"
    }
    found = []
    for event in events:
        if event.get("ph") != "X":
            continue
        lane, about = (event["pid"], event["tid"]), event.get("args") or {}
        operation = str(about.get("hlo_op", ""))
        if lane in streams if devices else operation:
            kernel = Kernel(event["name"], event["ts"], event.get("dur", 0.0), lane, operation)
            found.append(kernel)
    return sorted(found, key=lambda kernel: (kernel.start, -kernel.length))


def kind_of_name(name: str) -> str:
    """The kind that a kernel's name tells."""
    return next((kind for kind, pattern in NAMES if pattern.search(name)), OTHER)


def kinds_of_program(text: str) -> dict[str, str]:
    """Kinds by the name of an operation, of a compiled program's text.

    What is inside a fusion decides, and the names of the functions that its operations came from.
    """
    inside: dict[str, set[str]] = defaultdict(set)
    own: list[tuple[str, str, str]] = []
    block = ""
    for line in text.splitlines():
        if line.endswith("{") and (head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(", line)):
            block = head[1]
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = .*?[\])}] ([a-z][\w\-]*)\(", line):
            inside[block].add(found[2])
            own.append((found[1], found[2], line))
    kinds = {}
    for name, opcode, line in own:
        called = re.search(r"calls=%?([\w.\-]+)", line)
        opcodes = inside[called[1]] if called else {opcode}
        label = re.search(r'op_name="([^"]*)"', line)
        kinds[name] = _kind(name, opcode, opcodes, label[1] if label else "")
    return kinds


def _kind(name: str, opcode: str, opcodes: set[str], label: str) -> str:
    """label: where the operation came from, as "jit(f)/attention/dot_general"."""
    if (measured := kind_of_name(opcode)) in (COLLECTIVE, COPY):
        return measured
    for word in (name, label):
        if (measured := kind_of_name(word)) in (GROUPED, ATTENTION):
            return measured
    for kind, of_kind in OPCODES:
        if opcodes & of_kind:
            return kind
    if opcode == "custom-call":
        measured = kind_of_name(label.rpartition("/")[2])
        return measured if measured != OTHER else kind_of_name(name)
    return ELEMENTWISE if opcode == "fusion" else kind_of_name(name)


def own_times(kernels: Iterable[Kernel]) -> list[float]:
    """Of each kernel, the time that no other one within it on its lane covers. By start."""
    kernels = list(kernels)
    own = [kernel.length for kernel in kernels]
    open_by_lane: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, kernel in enumerate(kernels):
        stack = open_by_lane[kernel.lane]
        while stack and kernels[stack[-1]].end <= kernel.start:
            stack.pop()
        if stack:
            own[stack[-1]] -= min(kernel.length, kernels[stack[-1]].end - kernel.start)
        stack.append(i)
    return [max(time, 0.0) for time in own]


def gaps(kernels: Iterable[Kernel]) -> list[float]:
    """Between the first start and the last end, the stretches in which nothing ran. By start."""
    found, end = [], None
    for kernel in kernels:
        if end is not None and kernel.start > end:
            found.append(kernel.start - end)
        end = kernel.end if end is None else max(end, kernel.end)
    return found


def summary(kernels: list[Kernel], steps: int, kinds: Mapping[str, str]) -> dict[str, Any]:
    """Milliseconds of a step by kind, the longest kernels, and what the device waited.

    kinds: of operations, see `kinds_of_program`. A trace without kernels says so.
    """
    if not kernels:
        return {"steps": steps, "error": "the trace has no kernels"}
    by_file = {re.sub(r"[.\-]", "_", name): kind for name, kind in kinds.items()}
    by_kind: dict[str, float] = defaultdict(float)
    by_name: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0])
    per_step = 1e-3 / steps
    for kernel, time in zip(kernels, own_times(kernels), strict=True):
        # CUDA's libraries know better than the program what they are.
        kind = kinds.get(kernel.operation) or by_file.get(kernel.name) or kind_of_name(kernel.name)
        by_kind[kind] += time * per_step
        entry = by_name[kernel.name, kind]
        entry[0] += time * per_step
        entry[1] += 1
    window = max(kernel.end for kernel in kernels) - kernels[0].start
    idle = gaps(kernels)
    longest = sorted(by_name.items(), key=lambda item: -item[1][0])[:15]
    return {
        "steps": steps,
        "window_ms": window * per_step,
        "idle_ms": sum(idle) * per_step,
        "idle_share": sum(idle) / window if window else 0.0,
        "longest_gap_ms": 1e-3 * max(idle, default=0.0),
        "gaps_per_step": sum(1e-3 * gap > GAP_MS for gap in idle) / steps,
        "kernels_per_step": len(kernels) / steps,
        "kinds_ms": {kind: by_kind[kind] for kind in KINDS if kind in by_kind},
        "kernels": [
            {"name": name[:100], "kind": kind, "ms": ms, "calls": calls / steps}
            for (name, kind), (ms, calls) in longest
        ],
    }
