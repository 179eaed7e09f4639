"""What is said where nothing was said for a while."""

from __future__ import annotations

import io
import time

import pytest

from moe_jax.config import activity
from moe_jax.config.activity import doing, heard, speak, spoken_by, watched


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(activity, "EVERY", 0.05)
    monkeypatch.setattr(activity, "TICK", 0.01)


def wait_for(said, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in said():
        assert time.monotonic() < deadline, said()
        time.sleep(0.01)


def test_what_takes_long_is_told_and_how_far_it_is(soon, monkeypatch):
    monkeypatch.setattr("sys.stderr", said := io.StringIO())
    with watched(), doing("outer"):
        with doing("evaluating", 4, "batches") as one:
            one.advance(3)
            wait_for(said.getvalue, "evaluating, 3 of 4 batches (0 s) ...\n")
        wait_for(said.getvalue, "outer (")
    end = len(said.getvalue())
    with doing("later"):
        time.sleep(0.2)
    assert len(said.getvalue()) == end


def test_what_is_quick_is_not_told(monkeypatch):
    monkeypatch.setattr("sys.stderr", said := io.StringIO())
    with watched(), doing("quick"):
        pass
    assert said.getvalue() == ""


def test_nothing_is_told_while_others_are_heard(monkeypatch):
    monkeypatch.setattr(activity, "EVERY", 1.0)
    monkeypatch.setattr("sys.stderr", said := io.StringIO())
    with watched(), doing("training"):
        for _ in range(30):
            heard()
            time.sleep(0.05)
    assert said.getvalue() == ""


def test_a_line_in_a_terminal_is_written_over_and_wiped(soon, monkeypatch):
    monkeypatch.setattr("sys.stderr", said := Terminal())
    with watched(), doing("compiling"):
        wait_for(said.getvalue, "\r\x1b[2Kcompiling (0 s) ...")
    assert said.getvalue().endswith("\r\x1b[2K") and "\n" not in said.getvalue()


def test_another_may_tell_it_and_a_silent_process_tells_nothing(soon, monkeypatch):
    monkeypatch.setattr("sys.stderr", said := io.StringIO())
    message: list[str] = []
    with watched(), spoken_by(message.append), doing("searching", unit="layouts") as one:
        one.advance(7)
        wait_for(lambda: " ".join(message), "searching, 7 layouts")
    with watched(), doing("quiet"):
        speak(False)
        time.sleep(0.2)
    assert said.getvalue() == ""


def test_at_a_prompt_it_is_told_without_a_command(soon, monkeypatch):
    """In a program, and behind the body, nothing is."""
    monkeypatch.setattr("sys.stderr", said := io.StringIO())
    with doing("in a program"):
        time.sleep(0.2)
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    with doing("loading"), doing("building the model"):
        wait_for(said.getvalue, "building the model (0 s) ...\n")
    monkeypatch.delattr("sys.ps1")
    end = len(said.getvalue())
    time.sleep(0.2)
    assert "in a program" not in said.getvalue() and len(said.getvalue()) == end
