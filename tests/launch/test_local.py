"""The launcher, with programs that need no JAX."""

from __future__ import annotations

import importlib
import os
import signal
import time

import pytest

from moe_jax.config.errors import UserError
from tests.launch.conftest import Launched

command = importlib.import_module("launch.command")
local = importlib.import_module("launch.local")  # no part of the package, nor of its extras

PROGRAM = """
import os, signal, sys, time
process = os.environ["MOE_JAX_PROCESS"]
print("hello from", process, "of", os.environ["MOE_JAX_PROCESSES"], flush=True)
"""


@pytest.fixture
def launch(tmp_path):
    """launch(program, *arguments): three processes of it."""

    def start(body: str, *arguments: str) -> Launched:
        (tmp_path / "program.py").write_text(PROGRAM + body)
        flags = ["--processes=3", "--grace=1", "--module=program", "--", *(arguments or ("x",))]
        return Launched(*flags, path=tmp_path)

    return start


def test_lines_bear_the_number_of_their_process(launch):
    code, out, _ = launch("print(*sys.argv[1:])", "--a=1", "--b").end()
    assert code == 0
    expected = [f"[{i}] {text}" for i in range(3) for text in (f"hello from {i} of 3", "--a=1 --b")]
    assert sorted(out.splitlines()) == sorted(expected)


def test_the_first_failure_ends_all_and_is_told_last(launch):
    body = "if process == '1': sys.exit('no such file')\ntime.sleep(600)"
    code, _, err = launch(body).end(seconds=30)
    assert code == 1
    assert err.splitlines()[-2:] == ["launch: process 1 ended with 1:", "  no such file"]


def test_the_exit_code_is_that_of_the_failed_process(launch):
    body = "if process == '2': sys.exit(7)\ntime.sleep(600)"
    assert launch(body).end(seconds=30)[0] == 7


def test_signals_are_passed_on(launch):
    body = """
signal.signal(signal.SIGTERM, lambda *_: (print("asked", flush=True), sys.exit(0)))
print("ready", flush=True)
time.sleep(600)
"""
    launched = launch(body)
    launched.read_until("ready", times=3)
    os.kill(launched.pid, signal.SIGTERM)
    code, out, _ = launched.end(seconds=30)
    assert code == 0 and out.count("asked") == 3


def test_no_process_outlives_the_launcher(launch):
    launched = launch("print('ready', flush=True); time.sleep(600)")
    launched.read_until("ready", times=3)
    os.kill(launched.pid, signal.SIGKILL)
    launched.end(seconds=30)
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in launched.pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_does_not_end_when_asked_is_killed(launch):
    body = """
if process == "1":
    time.sleep(0.5)
    sys.exit(3)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(600)
"""
    launched = launch(body)
    assert launched.end(seconds=30)[0] == 3
    assert not any(os.path.exists(f"/proc/{pid}") for pid in launched.pids)


def test_what_a_process_finds_in_its_environment():
    inherited = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_other=1",
        "JAX_NUM_CPU_DEVICES": "8",
        "HOME": "/h",
    }
    found = local.environment(inherited, "127.0.0.1:5", processes=4, number=3, devices=2)
    assert found["XLA_FLAGS"] == "--xla_other=1" and found["JAX_NUM_CPU_DEVICES"] == "2"
    assert found["MOE_JAX_COORDINATOR"] == "127.0.0.1:5" and found["HOME"] == "/h"
    assert (found["MOE_JAX_PROCESS"], found["MOE_JAX_PROCESSES"]) == ("3", "4")


def test_the_command_stands_behind_two_dashes():
    assert command.split(["--a=1", "--", "--b", "--", "c"]) == (["--a=1"], ["--b", "--", "c"])
    assert command.split(["--a=1"]) == (["--a=1"], [])
    with pytest.raises(UserError, match="after --"):
        local.main(None, [])
