"""Training with files of a user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = (
    *("--config.steps=16", "--config.batch_size=32", "--config.model.num_layers=2"),
    *("--config.model.model_dim=16", "--config.model.head_dim=4", "--config.model.mlp_dim=16"),
    *("--config.moe.num_experts=4", "--config.moe.expert_dim=16", "--config.evaluation.every=8"),
    *("--config.optimizer.schedule.warmup_steps=1", "--config.optimizer.learning_rate=0.02"),
)


def train(folder: Path, config: str, *flags: str) -> Path:
    workdir = folder / "run"
    done = subprocess.run(
        [sys.executable, "-m", "moe_jax.train", f"--config={ROOT / 'configs' / config}",
         f"--workdir={workdir}", *SMALL, *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return workdir
