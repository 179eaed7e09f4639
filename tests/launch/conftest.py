"""Runs of several real processes on this machine, started by launch.local."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.conftest import CONFIG, texts  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
MORE = """
    config.steps = 20
    config.mesh.expert = 4
    config.logging.every = 1
    config.evaluation.every = 10
    config.checkpoint.every = 10
    return config
"""


class Launched:
    """A launcher and what it says."""

    def __init__(self, *argv: str, path: Path | None = None):
        python_path = os.pathsep.join(str(p) for p in (ROOT, path) if p is not None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launch.local", *argv],
            env={**os.environ, "PYTHONPATH": python_path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        first_line = self._process.stderr.readline()
        self.pids = [int(pid) for pid in re.findall(r"\d+", first_line)][1:]

    @property
    def pid(self) -> int:
        """Of the launcher itself."""
        return self._process.pid

    def read_until(self, text: str, times: int) -> None:
        """Reads lines of stdout until `text` was in so many of them."""
        while times:
            line = self._process.stdout.readline()
            assert line, f"ended without {text!r}"
            times -= text in line

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._process.poll() is None, self.end()[1:]
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self, seconds: float = 180) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) once it has ended."""
        out, err = self._process.communicate(timeout=seconds)
        return self._process.returncode, out, err


@pytest.fixture(scope="session")
def config(texts, tmp_path_factory) -> str:  # noqa: F811
    """The tiny config on data x expert = 2 x 4, 20 steps, every step logged."""
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    text = CONFIG.format(
        quickstart=str(ROOT / "configs" / "quickstart.py"),
        texts=str(texts),
        data_dir=str(tmp_path_factory.mktemp("data")),
        data=2,
    )
    file.write_text(text.replace("    return config\n", MORE))
    return str(file)
