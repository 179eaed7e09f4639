"""Writes the table of docs/applications.md, and README.md's short one, from the recorded twins.

python -m experiments.tasks.page [--check]     (--check: only say whether it is up to date)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from experiments.tasks.applications import APPLICATIONS, Application
from experiments.tasks.twins import RESULTS

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs/applications.md", ROOT / "README.md"
MARKS = ("<!-- twins: written by experiments.tasks.page -->", "<!-- /twins -->")
HEAD = (
    "application",
    "model, data",
    "metric",
    "trivial",
    "simple",
    "dense twin",
    "MoE",
    "MoE - dense",
    "verdict",
)
SHORT = ("application", "metric", "simple", "dense twin", "MoE", "MoE - dense")


def rows(results: Path = RESULTS) -> list[list[str]]:
    """A row for each application that has been measured, in the order of APPLICATIONS."""
    found = []
    for name, one in APPLICATIONS.items():
        file = results / f"{name}.json"
        if file.exists():
            found.append(row(one, json.loads(file.read_text("utf-8"))))
    return found


def row(one: Application, told: dict[str, Any]) -> list[str]:
    """The cells of one. Baselines: the best of each kind."""
    from moe_jax.sweeps.statistics import paired, student

    sparse, dense = ([run[one.metric] for run in told["runs"][arm]] for arm in ("sparse", "dense"))
    difference = student(paired(dict(enumerate(sparse)), dict(enumerate(dense))))
    best = max if one.best == "max" else min
    rules = {
        kind: best(of_kind.items(), key=lambda item: item[1])
        for kind, of_kind in told["baselines"].items()
    }
    means = [student(values).mean for values in (dense, sparse)]
    simple = rules["simple"][1]
    return [
        one.what,
        f"`{told['model']}`, {one.data}",
        one.metric,
        *(f"{value:.3f} ({title})" for title, value in (rules["trivial"], rules["simple"])),
        *(f"{mean:.4f}" for mean in means),
        f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]",
        verdict(one, difference.low, difference.high, means[1], simple),
    ]


def verdict(one: Application, low: float, high: float, mean: float, simple: float) -> str:
    """Whether the interval leaves 0 out, on which side, and whether the simple baseline is
    beaten."""
    sign = 1 if one.best == "max" else -1
    low, high = sorted((sign * low, sign * high))
    told = "MoE ahead" if low > 0 else "dense ahead" if high < 0 else "no difference shown"
    beaten = sign * mean > sign * simple
    return told if beaten else f"{told}; the simple baseline is not beaten"


def table(results: Path = RESULTS, columns: tuple[str, ...] = HEAD) -> str:
    places = [HEAD.index(column) for column in columns]
    lines = [columns, ["---"] * len(columns)]
    lines += [[cells[place] for place in places] for cells in rows(results)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def written(text: str, columns: tuple[str, ...] = HEAD, results: Path = RESULTS) -> str:
    """The page with the table between its marks."""
    first, last = (text.index(mark) for mark in MARKS)
    return f"{text[: first + len(MARKS[0])]}\n\n{table(results, columns)}\n\n{text[last:]}"


PAGES = {PAGE: HEAD, README: SHORT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for page, columns in PAGES.items():
        text = page.read_text("utf-8")
        new = written(text, columns)
        if new != text:
            stale.append(page.name)
            if not check:
                page.write_text(new, "utf-8")
    if check and stale:
        sys.exit(f"{', '.join(stale)}: not what the recorded results say")


if __name__ == "__main__":
    main()
