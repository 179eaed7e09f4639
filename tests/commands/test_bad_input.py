"""What bad input gets: one clear message, exit code 2 (1 for the machine's faults), no traceback,
nothing lost. The table of docs/running.md lists these."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.refusals import assert_refused
from tests.drawn import some

OVERRIDES = {
    "unknown key": (["--config.moe.num_expert=8"], ["moe.num_expert", "num_experts"]),
    "wrong type": (["--config.moe.num_experts=many"], ["moe.num_experts", "many"]),
    "k above E": (["--config.moe.router.k=9"], ["moe.router.k", "9", "4"]),
    "experts against the expert axis": (
        ["--config.mesh.data=-1", "--config.mesh.expert=8"],
        ["moe.num_experts", "mesh.expert = 8"],
    ),
    "batch against the mesh": (["--config.batch_size=12"], ["batch_size", "12", "8"]),
    "group against the row": (["--config.moe.group_size=24"], ["moe.group_size", "32"]),
    "group against the mesh": (
        ["--config.mesh.data=4", "--config.mesh.sequence=2"],
        ["moe.group_size", "mesh.sequence"],
    ),
    "zero size": (["--config.moe.expert_dim=0"], ["moe.expert_dim", "at least 1"]),
    "negative size": (["--config.batch_size=-8"], ["batch_size", "at least 1"]),
    "mesh against the devices": (["--config.mesh.data=3"], ["mesh", "3", "8 devices"]),
    "unknown kind": (["--config.moe.router.kind=mixtrall"], ["moe.router.kind", "mixtral"]),
    "two at once": (
        ["--config.moe.router.k=9", "--config.batch_size=12"],
        ["moe.router.k", "batch_size"],
    ),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_overrides(case, cli, tiny, tmp_path):
    overrides, fragments = OVERRIDES[case]
    result = cli("train", f"--config={tiny}", f"--workdir={tmp_path / 'run'}", *overrides)
    assert_refused(result, *fragments)
    assert not (tmp_path / "run" / "checkpoints").exists() or not any(
        (tmp_path / "run" / "checkpoints").iterdir()
    )


def test_missing_config_file(cli, tiny, tmp_path):
    missing = str(Path(tiny).with_name("tinny.py"))
    result = cli("train", f"--config={missing}", f"--workdir={tmp_path}")
    assert_refused(result, "tinny.py", "tiny.py")


def test_empty_dataset(cli, tiny, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    result = cli(
        "train", f"--config={tiny}", f"--workdir={tmp_path / 'r'}", f"--config.data.path={empty}"
    )
    assert_refused(result, str(empty))


def test_dataset_not_prepared(cli, tiny, tmp_path):
    result = cli(
        "train",
        f"--config={tiny}",
        f"--workdir={tmp_path / 'r'}",
        "--config.data.kind=stdlib_text",
        f"--config.data.data_dir={tmp_path / 'none'}",
        "--config.data.auto_prepare=false",
    )
    assert_refused(result, "moe_jax.data.prepare", "stdlib_text")


def test_workdir_of_another_config(cli, tiny, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    before = sorted(p.relative_to(workdir) for p in workdir.rglob("*"))
    result = cli(
        "train", f"--config={tiny}", f"--workdir={workdir}", "--config.model.rope_theta=500"
    )
    assert_refused(result, "model.rope_theta", "500", "--allow_changes")
    assert sorted(p.relative_to(workdir) for p in workdir.rglob("*")) == before


def newest(workdir: Path) -> Path:
    steps = [p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    return max(steps, key=lambda p: int(p.name))


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("fault", some(["truncated", "bit flip", "empty"], ["bit flip"]))
def test_a_bad_newest_checkpoint_is_named_and_the_one_before_is_used(
    fault, cli, tiny, trained, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    bad = newest(workdir)
    if fault == "empty":
        shutil.rmtree(bad)
        bad.mkdir()
    else:
        file = largest_file(bad)
        content = bytearray(file.read_bytes())
        if fault == "truncated":
            content = content[: len(content) // 2]
        else:
            content[len(content) // 2] ^= 4
        file.write_bytes(content)
    code, out, err = cli("train", f"--config={tiny}", f"--workdir={workdir}")
    assert code == 0, err
    assert bad.name in err
    assert "resuming at step 8" in out
    assert int(newest(workdir).name) == 12


def test_no_good_checkpoint(cli, tiny, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    for step in (workdir / "checkpoints").iterdir():
        if step.name.isdigit():
            file = largest_file(step)
            file.write_bytes(file.read_bytes()[:10])
    result = cli("train", f"--config={tiny}", f"--workdir={workdir}")
    assert_refused(result, "checkpoint")


def test_checkpoint_of_another_shape(cli, tiny, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    result = cli(
        "train",
        f"--config={tiny}",
        f"--workdir={workdir}",
        "--config.moe.expert_dim=24",
        "--allow_changes",
    )
    assert_refused(result, "w_", "24", "16")


def test_unwritable_workdir(cli, tiny, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    result = cli("train", f"--config={tiny}", f"--workdir={blocked / 'run'}")
    assert_refused(result, "--workdir", "cannot be written")


def test_disk_full(cli, tiny, trained, tmp_path, monkeypatch):
    """A full disk while metrics are written: exit code 1, what was saved stays."""
    from moe_jax.training import writers

    workdir = tmp_path / "run"

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(workdir))

    monkeypatch.setattr(writers.MetricWriter, "write", full)
    result = cli("train", f"--config={tiny}", f"--workdir={workdir}")
    assert_refused(result, "space", code=1)


@pytest.mark.grid
def test_nan_steps_are_skipped_and_end_the_run(cli, tiny, tmp_path):
    """A learning rate that blows up: the run ends after max_bad_steps, with what to try."""
    result = cli(
        "train",
        f"--config={tiny}",
        f"--workdir={tmp_path / 'run'}",
        "--config.optimizer.learning_rate=1e30",
        "--config.max_bad_steps=3",
    )
    assert_refused(result, "NaN or inf in 3 steps in a row", "learning_rate", code=1)


@pytest.mark.parametrize(
    ("flag", "fragment"),
    [("--prompt=", "prompt"), ("--temperature=-1", "temperature"), ("--top_p=0", "top_p")],
)
def test_generate(flag, fragment, cli, trained):
    argv = [f"--workdir={trained}", "--prompt=def ", flag]
    assert_refused(cli("generate", *argv), fragment)


def test_no_run_in_workdir(cli, tmp_path):
    assert_refused(cli("generate", f"--workdir={tmp_path}", "--prompt=a"), "no run")
    assert_refused(cli("evaluate", f"--workdir={tmp_path}"), "no run")


def test_generate_refuses_routing_that_sees_later_tokens(cli, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["moe"]["capacity_factor"] = 1.0
    config["moe"]["router"]["drop_order"] = "batch_priority"
    (workdir / "config.json").write_text(json.dumps(config))
    assert_refused(cli("generate", f"--workdir={workdir}", "--prompt=a"), "later")


def test_a_subprocess_ends_with_the_same_code_and_no_traceback(tmp_path):
    """One command as users call it."""
    command = [sys.executable, "-m", "moe_jax.train", "--config=nowhere.py", "--workdir=x"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "nowhere.py" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("argv", [("check",), ("plan", "--topology=h200:8", "--analytic")])
@pytest.mark.parametrize(
    ("file", "message"), [("/nowhere/at/all.json", "no such folder"), ("/", "is a folder")]
)
def test_a_file_for_results_is_looked_at_first(argv, file, message, cli, tiny):
    """Not behind the minutes that the results take."""
    command, *flags = argv
    code, out, err = cli(command, f"--config={tiny}", *flags, f"--json={file}")
    assert code == 2 and f"--json={file}: {message}" in err and "Traceback" not in err
    assert out == ""
