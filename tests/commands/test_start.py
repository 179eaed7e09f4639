"""How soon commands answer: --help without JAX, a mistake in the config without what trains."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import moe_layer
from experiments.benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
# None of them is needed to say what a command does.
HEAVY = set("jax flax orbax tensorstore grain tensorflow_datasets torch optuna scipy".split())
# Nor these, for seconds together, to find a mistake in a config.
OF_TRAINING = set("orbax tensorstore grain tensorboardX torch tensorflow_datasets".split())
MISTAKE = "--config.moe.num_expert=4"
CONFIG = "--config=configs/quickstart.py"


def commands() -> list[str]:
    """Every module that is a command with flags."""
    files = [
        file for top in ("moe_jax", "experiments", "launch") for file in ROOT.glob(f"{top}/**/*.py")
    ]
    found = []
    for file in sorted(files):
        text = file.read_text("utf-8")
        program = re.search('^if __name__ == "__main__":', text, re.MULTILINE)
        if program and re.search(r"run_command\(|import argparse", text):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts).removesuffix(".__main__"))
    return found


def imported(*argv: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """What `python -m ARGV` ended with, and the packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *argv], cwd=ROOT, capture_output=True, text=True
    )
    names = re.findall(r"^import time: +\d+ \| +\d+ \| +(\w+)", done.stderr, re.MULTILINE)
    assert {"os", "runpy"} <= set(names), done.stderr
    return done, set(names)


def test_every_command_is_found():
    assert {"moe_jax.train", "experiments.run", "experiments.benchmarks.gpu"} < set(commands())
    assert {"launch.local", "experiments.local_experts.run"} < set(commands())


@pytest.mark.parametrize("command", commands())
def test_help_needs_none_of_the_heavy_libraries(command):
    done, packages = imported(command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python -m {command}" in done.stdout or "usage: " in done.stdout
    assert not packages & HEAVY


@pytest.mark.parametrize(
    "argv",
    [
        ("moe_jax.train", CONFIG, "--workdir=none", MISTAKE),
        ("moe_jax.plan", CONFIG, "--topology=h200:8", MISTAKE),
        ("moe_jax.check", CONFIG, MISTAKE),
        ("moe_jax.sweep", CONFIG, "--out=none", "--sweep=seed=0..1", MISTAKE),
        ("moe_jax.search", CONFIG, "--out=none", "--space=seed=int(0,9,1)", MISTAKE),
        ("moe_jax.train", "--config=configs/quick.py", "--workdir=none"),
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_a_mistake_in_the_config_does_not_wait_for_what_trains(argv):
    done, packages = imported(*argv)
    assert done.returncode == 2
    meant = "config.moe.num_experts?" if MISTAKE in argv else "configs/quickstart.py?"
    assert f"did you mean {meant}" in done.stderr
    assert not packages & OF_TRAINING
    assert "jax" in packages  # an allowed one, which shows that imports are seen


def test_the_loads_of_a_benchmark_are_those_that_there_are():
    """Its flags name them without importing them."""
    assert list(moe_layer.LOADS) == ["random", *WORKLOADS]
