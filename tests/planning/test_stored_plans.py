"""The plans in docs/plans are those of today's code, and docs/plan.md quotes them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from moe_jax import plan
from moe_jax.cli import run_command

ROOT = Path(__file__).parents[2]
NAMES = sorted(file.stem for file in (ROOT / "docs/plans").glob("*.json"))


def stored(name: str) -> dict:
    (found,) = json.loads((ROOT / f"docs/plans/{name}.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_command_of_a_plan_gives_its_estimate(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / f"docs/plans/{name}.txt").read_text("utf-8")
    command = re.match(r"\$ ((?:.*\\\n)*.*)", text)[1].replace("\\\n", "")
    start, *argv = shlex.split(command.removeprefix("python -m "))
    assert (start, argv.pop()) == ("moe_jax.plan", f"--json=docs/plans/{name}.json")
    file = tmp_path / "plan.json"
    argv += ["--analytic", f"--json={file}"]
    assert run_command(plan.main, usage="", flags=plan.FLAGS, argv=argv) == 0
    (today,) = json.loads(file.read_text())
    assert today["estimate"] == stored(name)["estimate"]
    assert today["batch_size"] == stored(name)["batch_size"]


@pytest.mark.parametrize("name", NAMES)
def test_the_table_quotes_the_plan(name):
    found, text = stored(name), (ROOT / "docs/plan.md").read_text("utf-8")
    (row,) = [line for line in text.splitlines() if f"(plans/{name}.txt)" in line]
    peak, limit = found["peak"] / 2**30, found["limit"] / 2**30
    line = found["roofline"]
    assert f"| {found['topology']} | {peak:.1f} of {limit:.1f} | {line['binds']} |" in row
    assert f"| {line['expected_mfu']:.0%} |" in row
