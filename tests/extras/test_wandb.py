"""The real Weights & Biases, offline: what a run, a resumed run and a sweep leave for it."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from moe_jax import sweep, train
from moe_jax.cli import run_command
from moe_jax.config.errors import UserError
from moe_jax.training.tracking import Tracker
from tests.commands.conftest import texts, tiny  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[2]
BLOCK, HEADER = 32768, 7  # of LevelDB's log, which wandb writes; and of each of its chunks
WANDB = "--config.logging.wandb=true"


def records(file: Path) -> Iterator[Record]:
    """What is in a .wandb file: after 7 bytes, blocks of chunks (crc, length, type, part)."""
    content, at, parts = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        parts += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


class Sent:
    """One start of a run, as `wandb sync` would send it."""

    def __init__(self, file: Path):
        found = list(records(file))
        self.run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
        self.config: dict[str, Any] = {}
        for config in (self.run.config, *(r.config for r in found if r.HasField("config"))):
            self.config |= {item.key: json.loads(item.value_json) for item in config.update}
        self.history = [
            {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.history.item}
            for r in found
            if r.HasField("history")
        ]
        self.exit_code = next(r.exit.exit_code for r in found if r.HasField("exit"))


def sent(workdir: Path) -> list[Sent]:
    return [Sent(file) for file in sorted(workdir.glob("wandb/offline-run-*/run-*.wandb"))]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def run(tiny: str, workdir: Path, *more: str) -> int:  # noqa: F811
    argv = [f"--config={tiny}", f"--workdir={workdir}", WANDB, *more]
    return run_command(train.main, usage=train.USAGE, flags=train.FLAGS, argv=argv)


def test_a_run_that_goes_on_is_one_run(tiny, tmp_path):  # noqa: F811
    workdir = tmp_path / "one"
    more = ("--config.logging.every=1", "--config.logging.load_every=2", "--config.steps=5")
    assert run(tiny, workdir, *more) == 0
    shutil.rmtree(workdir / "checkpoints" / "5")  # as if it had been killed behind step 4
    assert run(tiny, workdir, *more) == 0
    first, second = sent(workdir)
    assert first.run.run_id == second.run.run_id == (workdir / "wandb_id").read_text()
    assert first.run.display_name == "one" and first.exit_code == 0
    written = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["_step"] for row in first.history] == [1, 2, 3, 4, 5]
    assert [row["_step"] for row in second.history] == [5]
    by_step = {row["_step"]: row for part in (first, second) for row in part.history}
    for line in written:
        row = by_step[line["step"]]
        for name in ("loss", "cross_entropy", "grad_norm"):
            if name in line:
                assert row[f"{line['split']}/{name}"] == pytest.approx(line[name], rel=1e-6)
    load = {
        name.rpartition("/")[2]: v for name, v in by_step[2].items() if "/layer_00/load/" in name
    }
    assert load["_type"] == "histogram" and len(load["values"]) == 30


def test_the_config_of_the_run_is_there_and_what_it_became(tiny, tmp_path):  # noqa: F811
    workdir = tmp_path / "changed"
    assert run(tiny, workdir, "--config.steps=2") == 0
    assert run(tiny, workdir, "--config.steps=4", "--config.optimizer.learning_rate=0.5",
               "--allow_changes") == 0  # fmt: skip
    before, after = (start.config for start in sent(workdir))
    assert before["optimizer"]["learning_rate"] != 0.5 and before["steps"] == 2
    assert after["optimizer"]["learning_rate"] == 0.5
    assert after == {**json.loads((workdir / "config.json").read_text()),
                     "_wandb": after.get("_wandb")}  # fmt: skip


def test_the_runs_of_a_sweep_are_a_group(tiny, tmp_path):  # noqa: F811
    out = tmp_path / "routers"
    argv = [f"--config={tiny}", f"--out={out}", WANDB, "--config.steps=2", "--sweep=seed=0,1"]
    assert run_command(sweep.main, usage=sweep.USAGE, flags=sweep.FLAGS, argv=argv) == 0
    points = sorted((out / "points").iterdir())
    starts = [start for point in points for start in sent(point)]
    assert [start.run.display_name for start in starts] == [point.name for point in points]
    assert {start.run.run_group for start in starts} == {"routers"} and len(starts) == 2


def test_a_run_that_fails_is_told_to_have_failed(tmp_path):
    tracker = Tracker(tmp_path, {})
    tracker.write(1, {"train/loss": float("nan"), "train/load": [float("nan")] * 3})
    tracker.close(failed=True)
    (start,) = sent(tmp_path)
    assert start.exit_code == 1 and start.history[0]["_step"] == 1


def test_without_a_key_there_is_one_message(tmp_path):
    """In a process of its own without a terminal, online."""
    program = (
        "import sys, pathlib\nfrom moe_jax.training.tracking import Tracker\n"
        "from moe_jax.config.errors import UserError\n"
        "try:\n    Tracker(pathlib.Path(sys.argv[1]), {})\n"
        "except UserError as error:\n    print(f'refused: {error}')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={
            "PATH": "",
            "HOME": str(tmp_path),
            "WANDB_BASE_URL": "http://127.0.0.1:9",
            "PYTHONPATH": str(ROOT),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "refused: config.logging.wandb: " in ended.stdout, ended.stderr
    assert "WANDB_MODE=offline" in ended.stdout


def test_an_object_store_is_refused(tmp_path):
    from etils import epath

    with pytest.raises(UserError, match="local --workdir"):
        Tracker(epath.Path("gs://bucket/run"), {})
