"""One stage of the GPU script, in a process of its own.

    python -m experiments.benchmarks.gpu.stage NAME RESULT.json SECONDS [--tiny]

The result file is written whole each time something is known, so that a stage that is killed has
lost only what it was at. --tiny: sizes at which a CPU shows that the stage runs.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moe_jax.config import xla_flags

PACKAGE = "experiments.benchmarks.gpu"
# Stage to (module, argument): its function run(report, argument, tiny).
STAGES = {
    "device": ("device", ""),
    "correctness": ("correct", ""),
    "mixtral": ("layer", "mixtral"),
    "olmoe": ("layer", "olmoe"),
    "deepseek": ("layer", "deepseek"),
    "step": ("step", ""),
    "quickstart": ("quickstart", ""),
}


def write_whole(path: Path, text: str) -> None:
    """The file has either its old or its new content, at any moment."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, "utf-8")
    os.replace(beside, path)


class StageReport:
    """What a stage has found so far. seconds: after which it is killed."""

    def __init__(self, path: Path, seconds: float):
        self._path, self.seconds = path, seconds
        self.found: dict[str, Any] = {}
        self.failed: list[str] = []

    def add(self, **values: Any) -> None:
        """Keeps values and writes the file."""
        self.found |= values
        write_whole(self._path, json.dumps(self.found) + "\n")

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What fails within is told, and the stage goes on with its next part."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failed.append(name)
            measured = f"{type(error).__name__}: {error}"
            self.add(errors={**self.found.get("errors", {}), name: measured[:500]})


def profiled(work: Callable[[], Any], steps: int, program: str) -> dict[str, Any]:
    """Where the device's time went while `work` made so many steps of a compiled program, which
    ran before. `work` returns when the device is done."""
    import jax

    from experiments.benchmarks.gpu.kernels import (
        kinds_of_program,
        newest_trace,
        read_kernels,
        summary,
    )

    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder)
        try:
            work()
        finally:
            jax.profiler.stop_trace()
        trace = newest_trace(Path(folder))
        kernels = read_kernels(trace) if trace else []
    return summary(kernels, steps, kinds_of_program(program))


def main(name: str, path: str, seconds: str, *options: str) -> int:
    module, argument = STAGES[name]
    report = StageReport(Path(path), float(seconds))
    tiny = "--tiny" in options
    if tiny:
        # The compiler's quick way: a dry run's time is that of compiling.
        xla_flags.add("--xla_backend_optimization_level=0")
    run = importlib.import_module(f"{PACKAGE}.{module}").run
    run(report, argument, tiny)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
