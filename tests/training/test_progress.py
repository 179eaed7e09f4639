"""The progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import sys

import pytest

from moe_jax.training import progress as module
from moe_jax.training.progress import Progress

VALUES = {"loss": 2.0, "tokens_per_s": 12345.6, "moe/dropped_fraction": 0.125, "other": 1.0}


def test_without_a_terminal_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(module, "PLAIN_EVERY", 0.0)
    with Progress(10, 4) as progress:
        progress.update(5, VALUES)
        progress.message("hello")
    out = capsys.readouterr().out
    assert "step 5/10" in out and "loss 2.000" in out and "dropped 12.5%" in out
    assert "tokens/s 12,346" in out and "ETA" not in out and "other" not in out
    assert "hello" in out and "\x1b" not in out


def test_not_a_line_for_each_step_but_one_for_the_last(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Progress(1000) as progress:
        for step in range(1, 996):
            now[0] = step / 10
            progress.update(step, {"loss": float(step)})
    lines = capsys.readouterr().out.splitlines()
    steps = [int(re.search(r"step (\d+)/1000", line)[1]) for line in lines]
    assert steps == [*range(40, 995, 40), 995]
    assert "ETA 01:36" in lines[0] and "loss 995.000" in lines[-1]


def pretend_terminal(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")


def test_on_a_terminal_a_bar_that_ends_where_the_run_ended(capsys, monkeypatch):
    pretend_terminal(monkeypatch)
    with Progress(300, 100) as progress:
        for step in range(101, 298):
            progress.update(step, VALUES)
    out = capsys.readouterr().out
    assert "297/300" in out and "dropped 12.5%" in out


def test_eighty_columns_show_everything_in_two_lines(capsys, monkeypatch):
    pretend_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    with Progress(1000) as progress:
        for step in range(1, 100):
            progress.update(step, VALUES | {"moe/max_violation": 1.25})
    out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    bar, line = out.strip().splitlines()[-2:]
    assert bar.count("━") > 70
    for part in ("99/1000", "ETA 00:0", "loss 2.0", "tokens/s 12,346", "MaxVio 1.25", "12.5%"):
        assert part in line


def test_messages_are_printed_as_they_are(capsys, monkeypatch):
    """Square brackets are rich's markup, which would swallow them or fail."""
    text = "load [red] [/x] [1, 2] " + "x" * 200
    pretend_terminal(monkeypatch)
    with Progress(10) as progress:
        progress.message(text)
    assert text in capsys.readouterr().out


def test_the_terminal_is_given_back_after_an_error(capsys, monkeypatch):
    pretend_terminal(monkeypatch)
    with pytest.raises(ZeroDivisionError), Progress(10) as progress:
        progress.update(1, VALUES)
        raise ZeroDivisionError
    out = capsys.readouterr().out
    assert out.rfind("\x1b[?25h") > out.rfind("\x1b[?25l") >= 0  # the cursor is shown again


def test_other_processes_are_silent(capsys, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    monkeypatch.setattr(module, "PLAIN_EVERY", 0.0)
    with Progress(10) as progress:
        progress.update(1, VALUES)
        progress.message("hello")
    assert capsys.readouterr().out == ""
