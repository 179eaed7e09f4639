"""The command moe_jax.report: flags, messages, exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from moe_jax import report
from moe_jax.cli import run_command
from tests.analysis.fake_run import write_run


def call(*argv: str) -> int:
    return run_command(report.main, usage=report.USAGE, flags=report.FLAGS, argv=argv)


def test_writes_beside_the_run(tmp_path, capsys):
    folder = write_run(tmp_path / "run", steps=20)
    assert call(f"--workdir={folder}") == 0
    assert (folder / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert str(folder / "report.html") in capsys.readouterr().out


def test_several_runs_and_a_name_for_the_file(tmp_path):
    folders = [write_run(tmp_path / name, steps=20, seed=n) for n, name in enumerate("ab")]
    out = tmp_path / "both.html"
    assert call(*(f"--workdir={folder}" for folder in folders), f"--out={out}") == 0
    assert "2 runs" in out.read_text("utf-8")


def test_commas_stand_between_runs(tmp_path):
    folders = [write_run(tmp_path / name, steps=20) for name in ("a", "b", "with,comma")]
    out = tmp_path / "all.html"
    argv = [f"--workdir={folders[0]},{folders[1]}", f"--workdir={folders[2]}", f"--out={out}"]
    assert call(*argv) == 0
    assert "3 runs" in out.read_text("utf-8")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--workdir is required"),
        (["--workdir="], "--workdir is empty"),
        (["--workdir=,"], "--workdir is empty"),
        (["--workdir=/nowhere/at/all"], "/nowhere/at/all: no such folder"),
        (["--workdri=x"], "did you mean --workdir?"),
    ],
)
def test_mistakes_end_with_one_message(argv, message, capsys):
    assert call(*argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_folder_without_metrics(tmp_path, capsys):
    assert call(f"--workdir={tmp_path}") == 2
    assert "no metrics.jsonl" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").touch()
    assert call(f"--workdir={tmp_path}") == 2
    assert "holds no metrics yet" in capsys.readouterr().err


def test_as_a_command(tmp_path):
    folder = write_run(tmp_path / "run", steps=20)
    command = [sys.executable, "-m", "moe_jax.report", f"--workdir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").exists()
    done = subprocess.run([*command[:3], "--help"], capture_output=True, text=True, check=False)
    assert "--workdir=VALUE" in done.stdout
