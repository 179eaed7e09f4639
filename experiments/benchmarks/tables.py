"""The tables of docs/performance.md from the benchmarks' results.

python -m experiments.benchmarks.tables RESULTS.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ARMS = ("even", "rows", "slots_scatter", "slots_einsum", "hf grouped_mm", "hf eager")
Result = dict[str, Any]


def layers(results: list[Result]) -> Iterator[str]:
    """Forward / forward + backward as shares of the dense feed-forward's speed."""
    yield "| D, F, k | experts | load | dense, ms | bound | " + " | ".join(ARMS) + " |"
    yield "| --- | ---: | --- | ---: | ---: |" + " ---: |" * len(ARMS)
    for result in results:
        arms = result["arms"]
        dense = [arms[f"dense/{passes}"]["ms"] for passes in ("forward", "both")]
        cells = [
            " / ".join(
                f"{arms[f'{arm}/{passes}']['of_dense']:.2f}" for passes in ("forward", "both")
            )
            if f"{arm}/both" in arms
            else ""
            for arm in ARMS
        ]
        yield (
            f"| {result['D']}, {result['F']}, {result['k']} | {result['E']} | {result['load']} "
            f"| {dense[0]:.0f} / {dense[1]:.0f} | {dense[1] / result['bound_ms']:.2f} "
            f"({result['bound_by']}) | " + " | ".join(cells) + " |"
        )


def memory(results: list[Result]) -> Iterator[str]:
    """Temporary memory of forward + backward, time to compile, and the parts of the layer."""
    parts = ("route", "sort", "permute", "experts", "combine")
    yield "| D, F, k | experts | dense, MiB | rows, MiB | compile, s | " + " | ".join(parts) + " |"
    yield "| --- |" + " ---: |" * (4 + len(parts))
    for result in results:
        arms, own = result["arms"], result["parts_ms"]
        total = sum(own.values())
        shares = " | ".join(f"{100 * own[part] / total:.1f} %" for part in parts)
        rows = arms["rows/both"]
        yield (
            f"| {result['D']}, {result['F']}, {result['k']} | {result['E']} "
            f"| {arms['dense/both']['temporary_mib']:.0f} | {rows['temporary_mib']:.0f} "
            f"| {rows['compile_seconds']:.1f} | {shares} |"
        )


def steps(results: list[Result]) -> Iterator[str]:
    """Whole training steps."""
    yield "| model | arm | ms | tokens / s | GFLOP/s | of the matmul rate | ours / this |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for result in results:
        for arm, cell in result["arms"].items():
            yield (
                f"| {result['name']} ({result['parameters'] / 1e6:.1f}M) | {arm} "
                f"| {cell['ms']:.0f} | {cell['tokens_per_second']:,.0f} "
                f"| {cell['gflop_per_second']:.0f} | {cell['of_matmul_rate']:.2f} "
                f"| {cell['ours_over_this']:.2f} |"
            )


def main(path: str) -> None:
    found = json.loads(Path(path).read_text("utf-8"))
    results = found["results"]
    print(", ".join(f"{key}: {value}" for key, value in found["machine"].items()))
    tables = (steps,) if "parameters" in results[0] else (layers, memory)
    for table in tables:
        print("\n" + "\n".join(table(results)))


if __name__ == "__main__":
    main(*sys.argv[1:])
