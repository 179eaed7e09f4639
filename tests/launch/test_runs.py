"""One run as several processes: the losses, checkpoints and ends of a run of one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from moe_jax import train
from moe_jax.cli import run_command
from tests.launch.conftest import Launched


def lines(workdir: Path) -> list[dict]:
    """metrics.jsonl; a line that is being written does not count."""
    file = workdir / "metrics.jsonl"
    whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def steps_saved(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def assert_same_losses(workdir: Path, reference: Path, steps: int = 20) -> None:
    here, there = ([x for x in lines(w) if x["step"] <= steps] for w in (workdir, reference))
    assert [(x["step"], x["split"]) for x in here] == [(x["step"], x["split"]) for x in there]
    for a, b in zip(here, there, strict=True):
        for name in {"loss", "cross_entropy", "moe/load_balance_loss"} & b.keys():
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


def run(config: str, workdir: Path, *more: str) -> None:
    """As one process, this one, with its 8 devices."""
    argv = [f"--config={config}", f"--workdir={workdir}", *more]
    assert run_command(train.main, usage=train.USAGE, flags=train.FLAGS, argv=argv) == 0


def launch(config: str, workdir: Path, processes: int, *more: str) -> Launched:
    shape = [f"--processes={processes}", f"--devices_per_process={8 // processes}"]
    return Launched(*shape, "--", f"--config={config}", f"--workdir={workdir}", *more)


def at_step_10(finished: Path, copy: Path) -> Path:
    """A copy of a finished run that goes on from step 10."""
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "checkpoints" / "20")
    return copy


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory) -> tuple[Path, str]:
    """A run of 2 processes of which the second got SIGTERM; its folder and output. It has a
    data folder of its own, which nobody has filled before it, and prepares the data."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    data = tmp_path_factory.mktemp("data")
    launched = launch(config, workdir, 2, f"--config.data.data_dir={data}")
    launched.wait_until(lambda: bool(lines(workdir)))
    os.kill(launched.pids[1], signal.SIGTERM)
    code, out, err = launched.end()
    assert code == 0, err
    return workdir, out + err


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory) -> Path:
    """The uninterrupted run of one process on 8 devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def two(stopped, config, tmp_path_factory) -> tuple[Path, str]:
    """The stopped run, resumed by the same command and finished; its folder and output."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    shutil.copytree(stopped[0], workdir)
    code, out, err = launch(config, workdir, 2).end()
    assert code == 0, err
    return workdir, out


@pytest.mark.lab
def test_a_signal_to_one_process_stops_all_at_one_step(stopped):
    workdir, out = stopped
    last = lines(workdir)[-1]["step"]
    assert last < 20
    assert f"[0] stopped by SIGTERM at step {last}, saved" in out
    assert steps_saved(workdir)[-1] == last


@pytest.mark.lab
def test_process_0_alone_prepares_the_data_and_speaks(stopped):
    message = stopped[1].splitlines()
    for text in (
        "Preparing",
        "tiny: 20 steps",
        "mesh: data=2 expert=4 on 2 processes",
        "stopped by SIGTERM",
    ):
        found = [line for line in message if text in line]
        assert len(found) == 1 and found[0].startswith("[0] "), found


@pytest.mark.lab
def test_two_processes_stopped_and_resumed_have_the_losses_of_one(two, stopped, alone):
    workdir, out = two
    assert f"resuming at step {lines(stopped[0])[-1]['step']}" in out
    assert_same_losses(workdir, alone)
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["processes"] == 2 and environment["devices"]["count"] == 8


@pytest.mark.grid
def test_four_processes_have_the_losses_of_one(alone, config, tmp_path):
    code, _, err = launch(config, tmp_path / "run", 4).end()
    assert code == 0, err
    assert_same_losses(tmp_path / "run", alone)


@pytest.mark.lab
def test_one_process_goes_on_with_the_checkpoint_of_two(two, alone, config, tmp_path):
    workdir = at_step_10(two[0], tmp_path / "run")
    run(config, workdir)
    assert_same_losses(workdir, alone)


@pytest.mark.lab
def test_another_mesh_goes_on_with_the_checkpoint(alone, config, tmp_path):
    """(2, 4) -> (8, 1)."""
    workdir = at_step_10(alone, tmp_path / "run")
    run(config, workdir, "--config.mesh.data=8", "--config.mesh.expert=1")
    assert_same_losses(workdir, alone)


@pytest.mark.grid
def test_one_device_goes_on_with_the_checkpoint_of_eight(alone, config, tmp_path):
    workdir = at_step_10(alone, tmp_path / "run")
    argv = [f"--config={config}", f"--workdir={workdir}"]
    mesh = ["--config.mesh.data=1", "--config.mesh.expert=1"]
    shape = ["--processes=1", "--devices_per_process=1"]
    code, out, err = Launched(*shape, "--", *argv, *mesh).end()
    assert code == 0, err
    assert "resuming at step 10" in out and "mesh: 1 device" in out
    assert_same_losses(workdir, alone)


@pytest.mark.grid
def test_two_go_on_with_the_checkpoint_of_one_until_one_is_killed(alone, config, tmp_path):
    """The newest checkpoint is damaged: both processes take the one before it."""
    workdir = tmp_path / "run"
    shutil.copytree(alone, workdir)
    (workdir / "checkpoints" / "20" / "meta.json").write_text("{")
    launched = launch(config, workdir, 2)
    launched.wait_until(lambda: lines(workdir)[-1]["step"] in (11, 12, 13))
    os.kill(launched.pids[1], signal.SIGKILL)
    start = time.monotonic()
    code, out, err = launched.end(seconds=60)
    assert time.monotonic() - start < 60
    assert code == 128 + signal.SIGKILL
    assert err.splitlines()[-1] == "launch: process 1 was ended by SIGKILL"
    assert "resuming at step 10" in out and err.count("20 is bad") == 1
    assert_same_losses(workdir, alone, steps=lines(workdir)[-1]["step"])


@pytest.mark.lab
def test_two_processes_evaluate_as_one_trained(two, tmp_path):
    file = tmp_path / "evaluation.json"
    shape = ["--processes=2", "--devices_per_process=4", "--module=moe_jax.evaluate", "--"]
    argv = [f"--workdir={two[0]}", "--batches=2", f"--json={file}"]
    code, out, err = Launched(*shape, *argv).end()
    assert code == 0, err
    assert out.count("cross_entropy") == 1
    (result,) = json.loads(file.read_text())
    last = next(line for line in reversed(lines(two[0])) if line["split"] == "eval")
    for name in ("cross_entropy", "moe/max_violation"):
        np.testing.assert_allclose(result["metrics"][name], last[name], rtol=1e-5)
