"""The tables of docs/performance.md from the benchmarks' results: layers, training steps, a GPU.

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


# --- of gpu.sh ---


def gpu(found: Result) -> Iterator[str]:
    """One table: a row a figure, with the stages that did not end well among them."""
    yield "| stage | figure | value |"
    yield "| --- | --- | --- |"
    for name, stage in found["stages"].items():
        measured = f"{stage['status']}, {stage.get('seconds', 0):.0f} of {stage['limit']:.0f} s"
        yield f"| {name} | | {measured} |"
        result = stage.get("result", {})
        for figure, value in (*_figures(name, result), *_profiles(result)):
            if found["dry_run"] and value.endswith(("reached", "missed")):
                continue  # a target is of a card
            yield f"| {name} | {figure} | {value} |"
        for part, error in result.get("errors", {}).items():
            yield f"| {name} | {part} | {_cell(error)} |"
        if stage["status"] != "ok" and not result.get("errors"):
            last = (stage.get("error", "").strip().splitlines() or [""])[-1]
            yield f"| {name} | last line | {_cell(last)} |"


def _figures(name: str, result: Result) -> Iterator[tuple[str, str]]:
    """What a stage was for, as far as it came."""
    for rate, value in result.get("rates", {}).items():
        unit = "TFLOP/s" if rate.endswith("flops") else "TB/s"
        yield rate.removesuffix("_flops").replace("_", " "), f"{1e-12 * value:.3g} {unit}"
    if "target_config" in result:
        text = result["target_config"]
        yield "target config", f"{len(text)} characters" if text else "none without a card"
    if "checks" in result:
        worst = ", ".join(f"{dtype} {error:.1e}" for dtype, error in result["worst"].items())
        yield f"{result['checks']} checks", f"{len(result['bad'])} bad; largest errors {worst}"
        yield from ((check, _cell(why)) for check, why in list(result["bad"].items())[:10])
    if "case" in result:
        yield from _layer(result)
    if name == "step" and "ms" in result:
        billions = f"{1e-9 * result['active']:.2f}B active of {1e-9 * result['parameters']:.2f}B"
        mfu = f", MFU {result['mfu']:.3f}" if result["mfu"] else ""
        speed = f"{result['ms']:.1f} ms, {result['tokens_per_second']:,.0f} tokens / s"
        yield billions, f"{speed}, {result['tflop_per_second']:.3g} TFLOP/s{mfu}"
    if "complete" in result:
        measured = "all" if result["complete"] else "not all"
        yield "the run", f"{measured} of {result['steps']} steps in {result['seconds']:.0f} s"
    for split in ("training", "evaluation"):
        for metric, value in result.get(split, {}).items():
            yield f"{split}, {metric}", f"{value:.4g}"


def _layer(result: Result) -> Iterator[tuple[str, str]]:
    case, arms = result["case"], result.get("arms", {})
    size = ", ".join(f"{key}={case[key]}" for key in ("T", "D", "F", "E", "k"))
    yield size, case["dtype"]
    for arm in dict.fromkeys(key.split("/")[0] for key in arms):
        cells = [arms[f"{arm}/{passes}"] for passes in ("forward", "both")]
        time = " / ".join(f"{cell['ms']:.2f}" for cell in cells)
        share = " / ".join(f"{cell['of_dense']:.2f}" for cell in cells if "of_dense" in cell)
        yield f"{arm}, forward / + backward", f"{time} ms, {share} of dense"
    rows = result.get("rows", {})
    for key, target in (("of_dense", result.get("target")), ("of_torch", 1.0)):
        if key in rows and target:
            word = "reached" if rows[key] >= target else "missed"
            yield f"rows {key.replace('_', ' ')}, + backward", f"{rows[key]:.2f}: {target} {word}"


def _profiles(result: Result) -> Iterator[tuple[str, str]]:
    """Milliseconds by kind of kernel, and what the device waited."""
    profiles = {**result.get("profiles", {})}
    if "profile" in result:
        profiles[""] = result["profile"]
    for name, profile in profiles.items():
        title = f"profile of {name}" if name else "profile"
        if "error" in profile:
            yield title, profile["error"]
            continue
        kinds = sorted(profile["kinds_ms"].items(), key=lambda item: -item[1])
        yield f"{title}, ms by kind", ", ".join(f"{kind} {ms:.2f}" for kind, ms in kinds)
        yield (
            f"{title}, idle",
            f"{profile['idle_ms']:.2f} of {profile['window_ms']:.2f} ms a step, "
            f"longest gap {profile['longest_gap_ms']:.2f} ms",
        )


def _cell(text: str) -> str:
    """Text of any length and kind in a table."""
    return " ".join(text.replace("|", "/").split())[:160]


def show(found: Result) -> Iterator[str]:
    """The tables of a result file, by what is in it."""
    yield ", ".join(f"{key}: {value}" for key, value in found["machine"].items())
    if "stages" in found:
        if found["dry_run"]:
            yield "A dry run at tiny sizes: no figure below says anything about speed."
        tables = [gpu(found)]
    else:
        results = found["results"]
        made = (steps,) if "parameters" in results[0] else (layers, memory)
        tables = [table(results) for table in made]
    for table in tables:
        yield ""
        yield from table


def main(*arguments: str) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    try:
        found = json.loads(Path(arguments[0]).read_text("utf-8"))
    except (OSError, ValueError) as error:
        print(f"{arguments[0]}: cannot be read ({error})", file=sys.stderr)
        return 2
    print("\n".join(show(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
