"""A run's folder: odd names, two runs at once, refusals that leave nothing, its history."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from moe_jax.training.checkpoint import CheckpointConfig, Checkpoints
from tests.commands.refusals import assert_refused
from tests.commands.runs import results, start


def argv(tiny: str, workdir: Path, *flags: str) -> list[str]:
    return [f"--config={tiny}", f"--workdir={workdir}", *flags]


@pytest.mark.parametrize("name", ["br[1]", "a\\b", "all*", "which?"])
def test_a_name_that_is_a_pattern_is_refused_before_anything_is_written(name, cli, tiny, tmp_path):
    """Checkpoints of such a run could not be found again, or would be mixed with others'."""
    for workdir in (tmp_path / name, tmp_path / name / "below"):
        assert_refused(cli("train", *argv(tiny, workdir)), "--workdir=", name, "take another")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags",
    [
        ["--config.moe.router.k=9"],
        ["--config.mesh.data=3"],
        ["--config.model.vocab_size=100"],
        ["--config.data.path=nowhere"],
        ["--config.evaluation.split=tset"],
        ["--warm_start=nowhere"],
    ],
    ids=lambda flags: flags[0],
)
def test_a_refused_run_leaves_no_folder(flags, cli, tiny, tmp_path):
    workdir = tmp_path / "sweep" / "run"
    assert_refused(cli("train", *argv(tiny, workdir, *flags)))
    assert not list(tmp_path.iterdir())
    workdir.mkdir(parents=True)
    (workdir / "notes.txt").write_text("mine")
    assert_refused(cli("train", *argv(tiny, workdir, *flags)))
    assert [file.name for file in workdir.iterdir()] == ["notes.txt"]


def wait_for_metrics(workdir: Path) -> None:
    until = time.monotonic() + 120
    while not (workdir / "metrics.jsonl").exists() or not results(workdir):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_two_at_once(cli, tiny, tmp_path):
    """The second is told who writes there; the first goes on as if nothing had been."""
    workdir = tmp_path / "run"
    first = start(tiny, workdir, "--config.steps=400")
    try:
        wait_for_metrics(workdir)
        message = (f"process {first.pid} on ", "(train, since ", "is writing here")
        assert_refused(cli("train", *argv(tiny, workdir, "--config.steps=400")), *message)
        code, _, err = cli("report", f"--workdir={workdir}")  # a reader may come at any time
        assert code == 0, err
    finally:
        first.send_signal(signal.SIGTERM)
        _, err = first.communicate()
    assert first.returncode == 0 and "Traceback" not in err, err
    steps = [line["step"] for line in results(workdir) if line["split"] == "train"]
    assert steps == sorted(set(steps))


@pytest.mark.lab
def test_a_lock_ends_with_its_process(cli, tiny, tmp_path):
    workdir = tmp_path / "run"
    first = start(tiny, workdir, "--config.steps=400")
    wait_for_metrics(workdir)
    first.kill()
    first.communicate()
    code, _, err = cli("train", *argv(tiny, workdir, "--config.steps=4"))
    assert code == 0, err


def position(workdir: Path) -> tuple[int, int]:
    with Checkpoints(workdir / "checkpoints", CheckpointConfig(), read_only=True) as checkpoints:
        found = checkpoints.read_metadata()
        return found.step, found.data_index


@pytest.mark.lab
def test_the_position_is_that_of_the_data_and_the_history_says_how_it_came(
    cli, tiny, trained, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    assert position(workdir) == (12, 12 * 8)
    flags = ("--config.batch_size=16", "--config.steps=14", "--allow_changes")
    code, _, err = cli("train", *argv(tiny, workdir, *flags))
    assert code == 0, err
    assert position(workdir) == (14, 12 * 8 + 2 * 16)
    first, second = map(json.loads, (workdir / "history.jsonl").read_text().splitlines())
    assert (first["step"], first["data_index"], first["changes"]) == (0, 0, [])
    assert (second["step"], second["data_index"]) == (12, 96)
    assert "batch_size: 8 -> 16" in second["changes"]
    assert isinstance(first["command"], list)
