"""Small jobs for an engine, and what becomes of them."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from moe_jax.sweeps.engine import Job, State

# Counts in a file, slowly; stops on SIGTERM with exit code 0, as training does.
STAND_IN = textwrap.dedent(
    """
    import os, pathlib, signal, sys, time
    folder, fails = pathlib.Path(sys.argv[1]), sys.argv[2] == "fail"
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    state = folder / "state"
    print("started", os.getpid(), flush=True)
    (folder / "starts").open("a").write("x")
    for n in range(int(state.read_text()) if state.exists() else 0, int(sys.argv[3])):
        if stop:
            sys.exit(0)
        time.sleep(0.1)
        state.write_text(str(n + 1))
        if fails and n == 2:
            sys.exit("it went wrong")
    """
)


class Recorder:
    def __init__(self) -> None:
        self.changes: list[tuple[str, State]] = []

    def changed(self, job: Job, state: State) -> None:
        self.changes.append((job.name, state))

    def tick(self, states: dict[str, State]) -> None: ...


def job(root: Path, name: str, fails: bool = False, count: int = 5) -> Job:
    folder = root / name
    return Job(
        name=name,
        command=[
            *(sys.executable, "-c", STAND_IN),
            *(str(folder), "fail" if fails else "-", str(count)),
        ],
        folder=folder,
        whole=lambda: (folder / "state").read_text() == str(count),
    )
