"""Pictures of benchmark results (needs matplotlib, extra `bench`).

python -m experiments.benchmarks.plot RESULTS.json PICTURE.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# One colour a kind: ours, our alternatives, the limits, PyTorch.
COLOURS = {
    "rows": "#2563a8",
    "ours": "#2563a8",
    "slots_scatter": "#8a8a8a",
    "slots_einsum": "#bdbdbd",
    "even": "#2f8f4e",
    "bound": "#111111",
    "torch dense": "#e8b86d",
    "hf eager": "#c58a12",
    "hf grouped_mm": "#b8432f",
}
LABELS = {
    "rows": "moe_jax, dropless",
    "ours": "moe_jax",
    "slots_scatter": "slots by scatter, 1.25, drops",
    "slots_einsum": "slots by one-hot product, 1.25, drops",
    "even": "even experts, one batched product",
    "bound": "max(FLOPs / peak, bytes / bandwidth)",
    "torch dense": "dense in PyTorch",
    "hf eager": "Hugging Face, eager",
    "hf grouped_mm": "Hugging Face, grouped_mm",
}


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Layers over the number of experts, or training steps as bars."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        figure = _steps(plt, results) if "parameters" in results[0] else _layers(plt, results)
        figure.savefig(path, dpi=150, metadata={"Software": None})
        plt.close(figure)


def _layers(plt: Any, results: list[dict[str, Any]]) -> Any:
    """Speed as a share of the dense feed-forward's, for the size with the most numbers of experts;
    one panel for each of forward and both passes."""
    sizes = [tuple(result[key] for key in ("T", "D", "F", "k", "dtype")) for result in results]
    size = max(sizes, key=sizes.count)
    chosen = [result for own, result in zip(sizes, results, strict=True) if own == size]
    chosen.sort(key=lambda result: result["E"])
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, (passes, title) in zip(
        axes, (("forward", "forward"), ("both", "forward + backward")), strict=True
    ):
        for arm, colour in COLOURS.items():
            key = f"{arm}/{passes}"
            points = [(r["E"], r["arms"][key]["of_dense"]) for r in chosen if key in r["arms"]]
            if arm == "bound" and passes == "both":
                points = [(r["E"], r["arms"]["dense/both"]["ms"] / r["bound_ms"]) for r in chosen]
            if points:
                line = ":" if arm in ("even", "bound", "torch dense") else "-"
                axis.plot(*zip(*points, strict=True), line, marker="o", ms=3, color=colour)
                axis.lines[-1].set_label(LABELS[arm])
        axis.set_xscale("log", base=2)
        ticks = [result["E"] for result in chosen]
        axis.set_xticks(ticks, [str(E) for E in ticks])
        axis.set_ylim(0, 1.25)
        axis.set_xlabel("experts")
        axis.set_title(title, fontsize=10)
    axes[0].set_ylabel("speed, share of the dense feed-forward")
    T, D, F, k, dtype = size
    figure.suptitle(f"{T} tokens, D={D}, F={F}, k={k}, {dtype}, {chosen[0]['load']} loads")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _steps(plt: Any, results: list[dict[str, Any]]) -> Any:
    """Tokens a second of each model, a panel each."""
    figure, axes = plt.subplots(
        1, len(results), figsize=(3.4 * len(results), 2.8), squeeze=False, layout="constrained"
    )
    for axis, result in zip(axes[0], results, strict=True):
        for place, (arm, cell) in enumerate(result["arms"].items()):
            axis.bar(place, cell["tokens_per_second"], color=COLOURS[arm], width=0.7)
            text = f"{cell['tokens_per_second']:,.0f}"
            axis.text(place, cell["tokens_per_second"], text, ha="center", va="bottom")
        names = [LABELS[arm].replace(", ", ",\n") for arm in result["arms"]]
        axis.set_xticks(range(len(names)), names, fontsize=7)
        axis.set_title(f"{result['name']} ({result['parameters'] / 1e6:.1f}M)", fontsize=10)
    axes[0][0].set_ylabel("tokens / s")
    return figure


def main(results: str, picture: str) -> None:
    draw(json.loads(Path(results).read_text("utf-8"))["results"], Path(picture))


if __name__ == "__main__":
    main(*sys.argv[1:])
