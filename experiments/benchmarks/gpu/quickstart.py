"""The quickstart, as the README runs it: its losses, and how fast a small model's steps are."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks.gpu.kernels import newest_trace, read_kernels, summary
from experiments.benchmarks.gpu.stage import StageReport

SPARE = 9.0  # seconds before its end a run is told to stop; the metrics so far count
PROFILED = (100, 110)
SMALLER = (
    "--config.model.num_layers=2",
    "--config.batch_size=2",
    "--config.evaluation.batches=2",
    "--config.logging.every=2",
)
KEPT = ("step", "loss", "tokens_per_s", "step_time_s", "mfu", "bits_per_byte")


def run(report: StageReport, argument: str, tiny: bool) -> None:
    steps, profile = (6, (3, 5)) if tiny else (600, PROFILED)
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [
            *(sys.executable, "-m", "moe_jax.train", "--config=configs/quickstart.py"),
            f"--workdir={workdir}",
            f"--config.steps={steps}",
            f"--config.data.data_dir={folder}/data",
            f"--config.logging.profile_steps={profile}",
            *(SMALLER if tiny else ()),
        ]
        start = time.monotonic()
        process = subprocess.Popen(command)
        while (
            code := process.poll()
        ) is None and time.monotonic() - start < report.seconds - SPARE:
            time.sleep(0.5)
            report.add(**read(workdir))
        if code is None:
            process.terminate()  # it saves and stops
            code = process.wait(10)
        found = read(workdir)
        report.add(
            exit_code=code,
            seconds=time.monotonic() - start,
            steps=steps,
            complete=found.get("training", {}).get("step") == steps,
            **found,
        )
        with report.part("profile"):
            trace = newest_trace(workdir / "profile")
            kernels = read_kernels(trace) if trace else []
            report.add(profile=summary(kernels, profile[1] - profile[0], {}))
    if code or not report.found["complete"]:
        report.failed.append(f"exit code {code}")


def read(workdir: Path) -> dict[str, Any]:
    """The last metrics of training and of evaluation."""
    found: dict[str, Any] = {}
    file = workdir / "metrics.jsonl"
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            metrics = json.loads(line)
        except ValueError:
            continue  # it is being written
        kept = {key: metrics[key] for key in KEPT if key in metrics}
        place = "training" if metrics.get("split") == "train" else "evaluation"
        found[place] = found.get(place, {}) | kept
    return found
