"""Runs whose workdir is in an object store, by the real clients: files by gcsfs or s3fs, arrays by
TensorStore. Each must be the local run in every number."""

from __future__ import annotations

import json

import pytest
from etils import epath

import moe_jax
from moe_jax import train
from moe_jax.cli import run_command
from moe_jax.config import lock
from moe_jax.config.errors import UserError
from moe_jax.config.paths import Lines, files_below, remove_tree, size_of, write_whole
from moe_jax.training.checkpoint import CheckpointConfig, Checkpoints

STORES = ["gcs"]


def metrics(workdir) -> list[dict]:
    """The lines of metrics.jsonl without the time that things took."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("step_time_s", "tokens_per_s", "mfu")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


def train_there(tiny: str, workdir: epath.Path) -> None:
    argv = [f"--config={tiny}", f"--workdir={workdir}"]
    assert run_command(train.main, usage=train.USAGE, flags=train.FLAGS, argv=argv) == 0


@pytest.fixture(scope="module", params=STORES)
def finished(request, tiny, trained) -> epath.Path:
    """A run whose last save was not finished, and that went on; its workdir in the store."""
    workdir = epath.Path(f"{request.getfixturevalue(request.param)}/runs/tiny")
    train_there(tiny, workdir)
    steps = Checkpoints(workdir / "checkpoints", CheckpointConfig(), read_only=True).steps()
    assert steps == [4, 8, 12]
    (workdir / "checkpoints" / "manifests" / "12.json").unlink()
    train_there(tiny, workdir)
    return workdir


def test_the_run_is_the_local_one(finished, trained):
    assert metrics(finished) == metrics(trained)


def test_the_lock_is_gone_when_the_run_has_ended(finished):
    assert not (finished / ".lock").exists()


def test_other_commands_read_it(finished, trained, cli):
    code, _, err = cli("evaluate", f"--workdir={finished}")
    assert code == 0, err
    assert metrics(trained)[-1]["cross_entropy"] == pytest.approx(
        moe_jax.load(str(finished), own_mesh=True).evaluate()["cross_entropy"], abs=0
    )
    code, _, err = cli("report", f"--workdir={finished}")
    assert code == 0 and (finished / "report.html").exists(), err


@pytest.fixture(params=["gcs", "s3"])
def folder(request) -> epath.Path:
    return epath.Path(f"{request.getfixturevalue(request.param)}/{request.function.__name__}")


def test_files(folder):
    write_whole(folder / "whole.json", "1")
    write_whole(folder / "whole.json", "2")
    lines = Lines(folder / "deep" / "lines.jsonl")
    for line in "abc":
        lines.add(line)
    lines.send()
    lines.add("d")
    lines.close()
    assert (folder / "whole.json").read_text() == "2"
    assert (folder / "deep" / "lines.jsonl").read_text() == "a\nb\nc\nd\n"
    assert [file.name for file in files_below(folder)] == ["lines.jsonl", "whole.json"]
    assert size_of(folder / "deep" / "lines.jsonl") == 8
    remove_tree(folder)
    assert not (folder / "whole.json").exists()


def test_one_writer(folder, monkeypatch):
    monkeypatch.setattr(lock, "STALE", 3.0)
    monkeypatch.setattr(lock, "RENEWED", 0.3)
    with lock.FolderLock(folder, "first") as first:
        # The same as another host's: of this one, the number of a dead process says it is free.
        monkeypatch.setattr("socket.gethostname", lambda: "another")
        with pytest.raises(UserError, match="first"), lock.FolderLock(folder, "second"):
            pass
        first.check()
    with lock.FolderLock(folder, "third"):
        pass
    assert not (folder / lock.FILE).exists()
