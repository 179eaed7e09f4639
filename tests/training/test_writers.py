"""metrics.jsonl over crashes and resumption; TensorBoard files; signals; progress."""

from __future__ import annotations

import json
import math
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.training.progress import Progress
from moe_jax.training.signals import StopSignals
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


def test_signals_set_a_flag_and_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        assert not signals.stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop and signals.name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_interrupt_is_an_interrupt():
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.stop
        os.kill(os.getpid(), signal.SIGINT)


def test_progress_without_a_terminal_writes_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr("moe_jax.training.progress.PLAIN_EVERY", 0.0)
    with Progress(10, 4) as progress:
        progress.update(5, {"loss": 2.0, "moe/dropped_fraction": 0.125})
        progress.message("hello")
    out = capsys.readouterr().out
    assert "step 5/10" in out and "loss 2.000" in out and "dropped 12.5%" in out
    assert "hello" in out and "\x1b" not in out
