"""metrics.jsonl over crashes and resumption, TensorBoard files, Weights & Biases."""

from __future__ import annotations

import errno
import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config.errors import UserError
from moe_jax.training.writers import LoggingConfig, MetricWriter

QUIET = LoggingConfig(tensorboard=False)


def entries(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_writes_one_json_object_a_line(tmp_path):
    with MetricWriter(tmp_path, LoggingConfig()) as writer:
        metrics = {"loss": jnp.float32(1.5), "n": np.int32(3), "load": [0.25, 0.75]}
        writer.write(1, metrics, split="train")
        writer.write(2, {"loss": math.nan, "x": math.inf, "load": np.ones(2)}, split="eval")
    first, second = entries(tmp_path)
    assert first == {"step": 1, "split": "train", "loss": 1.5, "n": 3, "load": [0.25, 0.75]}
    assert second["loss"] is None and second["x"] is None and second["load"] == [1, 1]
    assert any((tmp_path / "tensorboard").iterdir())


def test_resuming_drops_later_lines_and_a_torn_one(tmp_path):
    with MetricWriter(tmp_path, QUIET) as writer:
        for step in range(1, 7):
            writer.write(step, {"loss": float(step)}, split="train")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "spl')
    with MetricWriter(tmp_path, QUIET, start_step=4) as writer:
        writer.write(5, {"loss": 50.0}, split="train")
    assert [(e["step"], e["loss"]) for e in entries(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 4.0),
        (5, 50.0),
    ]


def board(folder):
    """(tag, step) -> number or histogram, of the event files, where a later run purges steps."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for file in sorted((folder / "tensorboard").iterdir(), key=lambda f: f.stat().st_mtime_ns):
        data = file.read_bytes()
        while data:  # uint64 length, uint32 crc, the event, uint32 crc
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.HasField("session_log"):
                found = {k: v for k, v in found.items() if k[1] < event.step}
            for value in event.summary.value:
                is_number = value.WhichOneof("value") == "simple_value"
                content = value.simple_value if is_number else value.histo
                found[value.tag, event.step] = content
    return found


def test_tensorboard_has_numbers_and_histograms_and_forgets_later_steps(tmp_path):
    with MetricWriter(tmp_path, LoggingConfig()) as writer:
        writer.write(1, {"loss": 1.5, "load": [0.25, 0.75]}, split="train")
        writer.write(2, {"loss": 2.5}, split="train")
        writer.write(2, {"loss": 3.5}, split="eval")
    with MetricWriter(tmp_path, LoggingConfig(), start_step=1) as writer:
        writer.write(3, {"loss": jnp.bfloat16(4.5)}, split="train")
    found = board(tmp_path)
    histogram = found.pop(("train/load", 1))
    assert (histogram.num, histogram.sum, histogram.max) == (2, 1.0, 0.75)
    assert found == {("train/loss", 1): 1.5, ("train/loss", 3): 4.5}


def test_numbers_that_are_not_finite_stop_nothing(tmp_path):
    """A histogram of NaN is an error in tensorboardX, and a run may well have one."""
    with MetricWriter(tmp_path, LoggingConfig()) as writer:
        writer.write(1, {"norm": [math.nan, 1.0], "all": [math.inf]}, split="train")
    assert entries(tmp_path) == [{"step": 1, "split": "train", "norm": [None, 1.0], "all": [None]}]
    found = board(tmp_path)
    assert set(found) == {("train/norm", 1)} and found["train/norm", 1].num == 1


@pytest.mark.parametrize("torn", ["", "{", '{"step": 3', "7\n", '{"x": 1}\n', "\x00\x00"])
def test_whatever_a_crash_left_at_the_end_is_repaired(tmp_path, torn):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "split": "train"}\n' + torn)
    for _ in range(2):
        with MetricWriter(tmp_path, QUIET, start_step=1) as writer:
            pass
    with MetricWriter(tmp_path, QUIET, start_step=1) as writer:
        writer.write(2, {}, split="train")
    assert [entry["step"] for entry in entries(tmp_path)] == [1, 2]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with MetricWriter(tmp_path, LoggingConfig(wandb=True)) as writer:
        writer.write(1, {"loss": 1.0}, split="train")
    assert list(tmp_path.iterdir()) == []


def test_wandb_that_is_not_installed_is_a_mistake_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it was not there
    with pytest.raises(UserError, match="wandb"):
        MetricWriter(tmp_path, LoggingConfig(wandb=True))


class FullDisk:
    """A file that takes a few writes, then no more."""

    def __init__(self, path):
        self.room = 20

    def write(self, data):
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        pass

    def close(self):
        pass


def test_full_disk_ends_the_run_instead_of_hanging_it(tmp_path, monkeypatch):
    """A writer with a thread of its own would die unseen, and the run wait for it for ever."""
    monkeypatch.setattr("tensorboardX.record_writer.open_file", FullDisk)
    with pytest.raises(OSError) as error, MetricWriter(tmp_path, LoggingConfig()) as writer:
        for step in range(100):
            writer.write(step, {"loss": 1.0}, split="train")
    assert error.value.errno == errno.ENOSPC and 0 < len(entries(tmp_path)) < 100
