"""What a compiled program sends between devices, read off its HLO text.

found = collectives(compiled.as_text(), mesh)
sum(c.bytes_sent * c.times for c in found if "expert" in c.axes)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jax.sharding import Mesh

OPS = (
    "all-to-all",
    "ragged-all-to-all",
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
PAIRED = ("all-gather", "collective-permute")  # the type of their start is (operands, results)

PRODUCTS = re.compile(r" (?:dot|convolution)\(|custom_call_target=\"(?:__cublas|__triton_gemm)")


@dataclass(frozen=True)
class Computation:
    """One computation of an HLO module: its name, the type of its result, its instructions in the
    order in which they run."""

    name: str
    result: str
    is_entry: bool
    lines: list[str]

    def calls(self, target: str) -> bool:
        return any(f'custom_call_target="{target}"' in line for line in self.lines)


Computations = dict[str, Computation]


@dataclass(frozen=True)
class Collective:
    """One collective operation of a compiled program.

    op: one of OPS. axes: the mesh axes that it crosses. size: devices that take part in one group.
    arrays: (dtype, shape) of its results on one device. times: executions in one call of the
    program; a loop whose bound is computed counts once, branches count as if all were taken.
    asynchronous: split into a start and an end, between which other work may run.
    beside: instructions with matrix products that the schedule puts between the two.
    """

    op: str
    axes: frozenset[str]
    size: int
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    times: int
    asynchronous: bool
    beside: int = 0

    @property
    def result_bytes(self) -> float:
        return float(sum(_dtype_bytes(dtype) * math.prod(shape) for dtype, shape in self.arrays))

    @property
    def bytes_sent(self) -> float:
        """Bytes that one device sends to others, by the usual algorithms, R = result_bytes:
        all-to-all and all-gather (n-1)/n R, reduce-scatter (n-1) R, all-reduce 2 (n-1)/n R,
        permute R. Of a ragged all-to-all this is the most its buffers hold, not what is sent."""
        n, R = self.size, self.result_bytes
        if self.op == "reduce-scatter":
            return (n - 1) * R
        if self.op in ("collective-permute", "collective-broadcast"):
            return R
        return (2 if self.op == "all-reduce" else 1) * R * (n - 1) / n


def collectives(hlo_text: str, mesh: Mesh) -> list[Collective]:
    """All collectives of a program compiled for `mesh`, in no particular order.

    hlo_text: `compiled.as_text()` of any platform.
    """
    computations = _computations(hlo_text)
    entry = next(c.name for c in computations.values() if c.is_entry)
    found: list[Collective] = []

    def visit(name: str, times: int, beside: int | None) -> None:
        """beside: of the asynchronous call that this computation is the body of; else None."""
        computation = computations[name]
        if _goes_on(computation):
            return
        for i, line in enumerate(computation.lines):
            starts = _starts(line, computations)
            products = _beside(computation.lines[i:], computations) if starts else beside
            if collective := _collective(line, mesh, times, products):
                found.append(_scattered(collective, computation))
            for callee, repeats in _callees(line, computations):
                visit(callee, times * repeats, products)

    visit(entry, 1, None)
    return found


def _computations(hlo_text: str) -> Computations:
    found: Computations = {}
    lines: list[str] = []
    for line in hlo_text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> (.*) \{$", line):
            lines = []
            entry, name, result = header.groups()
            found[name] = Computation(name, result, entry is not None, lines)
        elif " = " in line:
            lines.append(line)
    return found


def _goes_on(computation: Computation) -> bool:
    """Whether this belongs to a collective that was started before, and only names it again.

    The TPU compiler fuses a started all-gather with the matrix products beside it: one fusion
    with AsyncCollectiveStart, any number of `async_collective_fusion`, one with its Done. All of
    them contain the all-gather.
    """
    return computation.name.startswith("async_collective_fusion") or computation.calls(
        "AsyncCollectiveDone"
    )


def _starts(line: str, computations: Computations) -> bool:
    """Whether an instruction starts an asynchronous collective or call."""
    if re.search(rf" (?:async|{'|'.join(OPS)})-start\(", line):
        return True
    return any(
        computations[callee].calls("AsyncCollectiveStart")
        for callee, _ in _callees(line, computations)
    )


def _beside(lines: list[str], computations: Computations) -> int:
    """Instructions with matrix products between the start lines[0] and its end: what first uses
    its result and does not hand it on."""
    handed = {_name(lines[0])}
    products = 0
    for line in lines[1:]:
        callees = [computations[callee] for callee, _ in _callees(line, computations)]
        uses = not handed.isdisjoint(re.findall(r"%([\w.\-]+)", line.partition(" = ")[2]))
        hands_on = re.search(r" (?:get-tuple-element|async-update)\(", line) or any(
            c.name.startswith("async_collective_fusion") for c in callees
        )
        if uses and not hands_on:
            break
        if uses:
            handed.add(_name(line))
        products += _multiplies(line, computations)
    return products


def _multiplies(line: str, computations: Computations) -> bool:
    """Whether an instruction, or a computation that it calls, is a matrix product."""
    return PRODUCTS.search(line) is not None or any(
        _multiplies(inner, computations)
        for callee, _ in _callees(line, computations)
        for inner in computations[callee].lines
    )


def _name(line: str) -> str:
    return re.sub(r"^(ROOT )?%?", "", line.strip()).partition(" = ")[0]


def _callees(line: str, computations: Computations) -> Iterator[tuple[str, int]]:
    """(computation, times it runs) that an instruction calls."""
    if " async-done(" in line or " async-update(" in line:
        return  # names the computation of its start once more
    trips = _trips(line, computations) if " while(" in line else 1
    for key, one, several in re.findall(r"(\w+)=(?:%([\w.\-]+)|\{(%[^}]*)\})", line):
        if key not in ("body", "calls", "to_apply", "branch_computations", "called_computations"):
            continue
        for name in [one] if one else re.findall(r"%([\w.\-]+)", several):
            if name in computations:
                yield name, trips
    for name in re.findall(r"(?:true|false)_computation=%([\w.\-]+)", line):
        yield name, 1


def _trips(line: str, computations: Computations) -> int:
    """How often a `while` runs; 1 where its bound is computed.

    The TPU compiler does not annotate loops. A scan's condition compares a counter that starts at
    0 with a constant: `ROOT compare(counter, constant), direction=LT`.
    """
    if count := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(count[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    if condition is None or condition[1] not in computations:
        return 1
    text = "\n".join(computations[condition[1]].lines)
    root = re.search(r"ROOT .* compare\(.*%([\w.\-]+)\), direction=LT", text)
    bound = root and re.search(rf"%{re.escape(root[1])} = s32\[\]\S* constant\((\d+)\)", text)
    return int(bound[1]) if bound else 1


def _collective(line: str, mesh: Mesh, times: int, beside: int | None) -> Collective | None:
    """The collective of one line of HLO; None where there is none."""
    found = re.search(rf" = (.*?) ({'|'.join(OPS)})(-start)?\(", line)
    if found is None:
        return None
    types, op, start = found.groups()
    if start and op not in PAIRED and types.startswith("(("):
        # The GPU compiler writes ((operands), results); the TPU compiler the results alone.
        types = types.partition("), ")[2]
    arrays = _arrays(types)
    if start:
        arrays = [array for array in arrays if array != ("u32", ())]  # no semaphores
    if start and op in PAIRED:
        arrays = arrays[len(arrays) // 2 :]
    groups = groups_of(line, mesh.devices.size)
    place = np.stack(np.unravel_index(groups, mesh.devices.shape))
    crossed = np.any(place != place[:, :, :1], axis=(1, 2))
    axes = {axis for axis, is_crossed in zip(mesh.axis_names, crossed, strict=True) if is_crossed}
    return Collective(
        op=op,
        axes=frozenset(axes),
        size=groups.shape[1],
        arrays=tuple(arrays),
        times=times,
        asynchronous=beside is not None,
        beside=beside or 0,
    )


def _scattered(collective: Collective, computation: Computation) -> Collective:
    """The TPU compiler writes a reduce-scatter as a fusion `all-reduce-scatter`: an all-reduce, of
    which each device keeps its part."""
    if collective.op != "all-reduce" or not computation.name.startswith("all-reduce-scatter"):
        return collective
    return replace(collective, op="reduce-scatter", arrays=tuple(_arrays(computation.result)))


def _arrays(types: str) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (dtype, tuple(_numbers(dims))) for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", types)
    ]


def groups_of(line: str, num_devices: int) -> np.ndarray:
    """(groups, devices of a group): which devices, numbered as in `mesh.devices.flat`, one
    collective of the HLO text joins, in each of the forms that XLA writes."""
    if found := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        return np.array(_numbers(found[1])).reshape(-1, 2)
    if re.search(r"replica_groups=\{\}", line):
        return np.arange(num_devices)[None]
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", line):
        return np.array([_numbers(group) for group in found[1].split("},{")])
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        return _permuted(found[2], found[3]).reshape(_numbers(found[1]))
    # Axes of a mesh: mesh['data'=4,'expert'=2], device_ids=([4,2]T(1,0)) {'expert'}
    found = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\))? \{(.*?)\}",
        line,
    )
    if found is None:
        raise ValueError(f"no replica groups in the HLO line: {line.strip()}")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
    devices = _permuted(found[2] or str(math.prod(sizes.values())), found[3])
    return _along(devices, sizes, found[4])


def _along(devices: np.ndarray, sizes: dict[str, int], axes: str) -> np.ndarray:
    """The groups of a mesh along axes such as "'data','expert':(1)2": of an axis of size 4 that is
    (before)size, here the slower half, whose steps are 4 / (1 x 2) = 2 apart."""
    dims: list[int] = []
    grouped: list[int] = []
    parts = {name: (before, size) for name, before, size in _AXIS.findall(axes)}
    for name, whole in sizes.items():
        before, size = (int(x or 1) for x in parts.get(name, ("", "")))
        if name in parts and not parts[name][1]:
            size = whole
        if name in parts:
            grouped.append(len(dims) + 1)
        dims += [before, size, whole // (before * size)]
    devices = np.moveaxis(devices.reshape(dims), grouped, range(-len(grouped), 0))
    return devices.reshape(-1, math.prod(dims[i] for i in grouped))


_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def _permuted(dims: str, order: str | None) -> np.ndarray:
    """Devices 0, 1, ... as an array of the dimensions `dims`, transposed by `order`."""
    devices = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return devices.transpose(_numbers(order)) if order else devices


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _dtype_bytes(dtype: str) -> float:
    """Bytes of one element: f32 -> 4, bf16 -> 2, pred and f8e4m3fn -> 1, s4 -> 0.5."""
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 1.0
