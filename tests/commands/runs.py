"""Runs of commands for the tests, and what they leave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TIMES = ("tokens_per_s", "step_time_s", "mfu")  # differ between runs


def lines(workdir: Path, split: str | None = None) -> list[dict]:
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if split in (None, line["split"])]


def results(workdir: Path) -> list[dict]:
    """Every number of a run that does not depend on time."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines(workdir)]


def start(config: str, workdir: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "moe_jax.train", f"--config={config}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
