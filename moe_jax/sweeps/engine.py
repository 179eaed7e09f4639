"""Runs the points of a sweep as processes, a folder each, and survives the death of any of them.

What a point has reached stands in its folder alone: `outcome.json` is written when it is done, and
a lock that the process itself holds says that it runs. So the same command goes on after a crash,
and several engines (on a shared file system) may work on one sweep.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from moe_jax.config.paths import write_whole
from moe_jax.sweeps.slots import Slot, slots

LOG, OUTCOME = "log.txt", "outcome.json"
LOCK = ".asked"  # the run itself, which the engine starts below it, has one of its own
POLL = 0.2  # seconds
STOPPING = 120.0  # seconds that a run has to save after SIGTERM


class State(enum.StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    ELSEWHERE = "elsewhere"  # another process holds the point's lock
    DONE = "done"
    PRUNED = "pruned"  # by a search: it went worse than others
    STOPPED = "stopped"  # by a signal, saved: the same command goes on
    FAILED = "failed"


@dataclass(frozen=True)
class Job:
    """One point as a process. whole: says whether its folder holds all that it should; exit code 0
    alone does not, as a run that was asked to stop has it too."""

    name: str
    command: Sequence[str]
    folder: Path
    whole: Callable[[], bool]
    steps: int = 0  # of the run, to show how far it is
    headlines: Sequence[str] = ()  # metrics of its evaluations to show, the first that is there
    variables: Mapping[str, str] = field(default_factory=dict)  # where the environment lacks them


class Observer(Protocol):
    """Hears what becomes of the jobs; `tick` is called a few times a second."""

    def changed(self, job: Job, state: State) -> None: ...

    def tick(self, states: dict[str, State]) -> None: ...


def is_done(folder: Path) -> bool:
    """Whether the point of this folder is finished."""
    return (folder / OUTCOME).is_file()


def run_jobs(jobs: Sequence[Job], workers: int, observer: Observer) -> dict[str, State]:
    """Runs what is not done, `workers` at a time, in order; returns the state of each job.

    A job that fails does not stop the others. Ctrl-C and SIGTERM are passed on as SIGTERM; the runs
    save, and KeyboardInterrupt is raised.
    """
    engine = _Engine(jobs, workers, observer)
    with stop_signals() as stop:
        try:
            while engine.step(stopping=bool(stop)):
                time.sleep(POLL)
        finally:
            engine.end()
    if stop:
        raise KeyboardInterrupt
    return engine.states


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The stop signals that have come; a second one raises KeyboardInterrupt at once."""
    came: list[int] = []

    def handle(number: int, frame: object) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    slot: Slot
    lock: IO[bytes]  # the process holds it too; here until its outcome is written
    since: float


class _Engine:
    def __init__(self, jobs: Sequence[Job], workers: int, observer: Observer):
        self._jobs, self._observer = jobs, observer
        self._free = slots(workers)
        self._running: list[_Running] = []
        self._asked = False  # the runs to stop
        self.states = {
            job.name: State.DONE if is_done(job.folder) else State.WAITING for job in jobs
        }

    def step(self, stopping: bool) -> bool:
        """One look at all of them; whether there is more to come."""
        for running in [*self._running]:
            if running.process.poll() is not None:
                self._ended(running)
        if stopping:
            self._ask_to_stop()
        else:
            self._start()
        self._observer.tick(self.states)
        waiting = any(s in (State.WAITING, State.ELSEWHERE) for s in self.states.values())
        return bool(self._running) or (waiting and not stopping)

    def _start(self) -> None:
        for job in self._jobs:
            if not self._free:
                return
            if self.states[job.name] not in (State.WAITING, State.ELSEWHERE):
                continue
            lock = take_lock(job.folder)
            if lock is None:
                self._set(job, State.ELSEWHERE)
            elif is_done(job.folder):  # by another engine, meanwhile
                lock.close()
                self._set(job, State.DONE)
            else:
                slot = self._free.pop(0)
                process = spawn(job, slot, lock)
                self._running.append(_Running(job, process, slot, lock, time.time()))
                self._set(job, State.RUNNING)

    def _ended(self, running: _Running) -> None:
        self._running.remove(running)
        self._free.append(running.slot)
        job, code = running.job, running.process.returncode
        if code == 0 and job.whole():
            finish(job.folder, running.since)
            self._set(job, State.DONE)
        else:
            self._set(job, State.STOPPED if code == 0 and self._asked else State.FAILED)
        running.lock.close()

    def _ask_to_stop(self) -> None:
        if not self._asked:
            self._asked = True
            for running in self._running:
                running.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Leaves nothing running, whatever has happened."""
        wait_for_all([running.process for running in self._running])

    def _set(self, job: Job, state: State) -> None:
        if self.states[job.name] != state:
            self.states[job.name] = state
            self._observer.changed(job, state)


def finish(folder: Path, since: float) -> None:
    """Marks the point of this folder as done; since: when its last start was."""
    facts = {"seconds": round(time.time() - since, 1)}
    write_whole(folder / OUTCOME, json.dumps(facts) + "\n")


def wait_for_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks all that run to save and end; after STOPPING seconds they are killed."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOPPING
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0))
        process.kill()
        process.wait()


def spawn(job: Job, slot: Slot, lock: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts the job; what it says goes to its log. The process inherits the lock, and so holds it
    until it ends, even where the engine is killed."""
    with open(job.folder / LOG, "ab") as log:
        log.write(f"$ {' '.join(job.command)}\n".encode())
        log.flush()
        return subprocess.Popen(
            slot.command(job.command),
            env=slot.environment({**job.variables, **os.environ}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lock.fileno(),),
            start_new_session=True,  # Ctrl-C reaches it once, through the engine
        )


def take_lock(folder: Path) -> IO[bytes] | None:
    """The lock of a point, held until it is closed here and in all that inherited it; None where
    another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / LOCK, "ab")  # noqa: SIM115 - it stays open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def last_words(folder: Path, lines: int = 12) -> list[str]:
    """The end of a point's log, from the last command on."""
    with contextlib.suppress(FileNotFoundError):
        said = (folder / LOG).read_text("utf-8", "replace").splitlines()
        starts = [i for i, line in enumerate(said) if line.startswith("$ ")]
        return [line for line in said[starts[-1] + 1 if starts else 0 :] if line.strip()][-lines:]
    return []
