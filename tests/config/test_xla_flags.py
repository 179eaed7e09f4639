"""Flags are asked about before XLA sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_jax.config import xla_flags
from moe_jax.config.errors import UserError

ROOT = Path(__file__).parents[2]
REAL, STRANGE = "--xla_backend_optimization_level=0", "--xla_no_such_flag=1"


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    """No answers of earlier processes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(xla_flags, "_MEMORY", {})


def test_an_unknown_flag_is_found_and_left_out(capsys):
    assert xla_flags.unknown([REAL, STRANGE]) == (STRANGE,)
    assert xla_flags.known([REAL, STRANGE]) == (REAL,)
    assert f"{STRANGE} is left out" in capsys.readouterr().err


def test_answers_are_kept_for_the_next_process(monkeypatch):
    xla_flags.unknown([REAL, STRANGE])
    monkeypatch.setattr(xla_flags, "_MEMORY", {})
    monkeypatch.setattr(xla_flags, "_ask", lambda flags: pytest.fail(f"asked again: {flags}"))
    assert xla_flags.unknown(["--xla_no_such_flag=2", REAL]) == ("--xla_no_such_flag=2",)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"0": 1}', '{"RELEASE": {"a": "b"}}'])
def test_a_damaged_file_of_answers_is_none(content: str):
    file = xla_flags._file()
    file.parent.mkdir(parents=True)
    file.write_text(content.replace("RELEASE", xla_flags._release()))
    assert xla_flags.unknown([STRANGE]) == (STRANGE,)


def test_the_flags_of_the_user_stand_last_and_count(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2")
    xla_flags.add(REAL, "--xla_dump_max_hlo_modules=3")
    found = os.environ["XLA_FLAGS"]
    assert found == "--xla_dump_max_hlo_modules=3 --xla_backend_optimization_level=2"


def test_a_value_that_cannot_be_read_is_a_message():
    with pytest.raises(UserError, match=r"XLA does not start: .*notanumber"):
        xla_flags.unknown(["--xla_backend_optimization_level=notanumber"])


def test_a_command_refuses_what_would_abort_it():
    command = [sys.executable, "-m", "moe_jax.report", "--workdir=nowhere"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": STRANGE},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: XLA_FLAGS: jaxlib ")
    assert STRANGE in done.stderr and "Traceback" not in done.stderr
