"""Starts one run as several processes on this machine, to try on CPU devices what a pod will do."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from absl import flags

from launch.command import split
from moe_jax.cli import Arguments, command_flags, run_command
from moe_jax.config.environment import PROCESS_VARIABLES
from moe_jax.config.errors import UserError
from moe_jax.sweeps.slots import Slot

USAGE = """
usage: python -m launch.local --processes=N [--devices_per_process=M] -- ARGUMENTS

Starts N processes of moe_jax.train on this machine, each with M CPU devices, which together are
one run. Each line of output bears the number of its process. SIGTERM and Ctrl-C are passed on.
When a process fails the others are ended, and its error and exit code are the launcher's.
  python -m launch.local --processes=2 --devices_per_process=4 -- \\
    --config=configs/quickstart.py --workdir=runs/two --config.mesh.expert=4
"""
FLAGS = command_flags()
flags.DEFINE_integer("processes", 2, "processes of the run", 1, flag_values=FLAGS)
flags.DEFINE_integer("devices_per_process", 1, "CPU devices of each", 1, flag_values=FLAGS)
flags.DEFINE_string("module", "moe_jax.train", "the module that is run", flag_values=FLAGS)
text = "seconds that the others have to end after one has failed"
flags.DEFINE_float("grace", 10.0, text, 0, flag_values=FLAGS)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
# Gloo's, for every group of devices and each device in it; it may write the end of a line, or two
# ends of lines, apart from the line.
CHATTER = "connected peer ranks"
LAST_WORDS = 40  # lines of the failed process's stderr that are shown again at the end


@dataclass
class Rank:
    """One process of the run."""

    number: int
    process: subprocess.Popen[str]
    last_words: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_WORDS))
    pumps: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        streams = ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr))
        for source, sink in streams:
            pump = threading.Thread(target=self._pump, args=(source, sink), daemon=True)
            pump.start()
            self.pumps.append(pump)

    def _pump(self, source: IO[str], sink: IO[str]) -> None:
        for line in source:
            if CHATTER in line or not line.strip():
                continue
            if sink is sys.stderr:
                self.last_words.append(line)
            # One write a line: lines of different processes do not mix.
            sink.write(f"[{self.number}] {line.rstrip()}\n")
            sink.flush()

    @property
    def exit_code(self) -> int | None:
        """As shells count it: 128 + n for a process that signal n has ended; None: it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def message(self) -> str:
        """How the process ended and what it said last."""
        code = self.process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        words = "".join(f"  {line}" for line in self.last_words if line.strip())
        return f"launch: process {self.number} {how}" + (f":\n{words}" if words else "\n")


def main(arguments: Arguments, command: Sequence[str]) -> int:
    if not command:
        raise UserError("nothing to run: give the arguments of the run after --")
    # A signal that comes while they start waits until it can be passed on to all of them.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    ranks = start(FLAGS.module, command, FLAGS.processes, FLAGS.devices_per_process)
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: send(ranks, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    ids = " ".join(str(rank.process.pid) for rank in ranks)
    sys.stderr.write(f"launch: {len(ranks)} processes, {ids}\n")
    failed = first_to_fail(ranks)
    if failed is not None:
        end(ranks, FLAGS.grace)
    for rank in ranks:
        for pump in rank.pumps:
            pump.join(timeout=5)
    if failed is None:
        return 0
    sys.stderr.write(failed.message())
    return failed.exit_code or 1


def start(module: str, arguments: Sequence[str], processes: int, devices: int) -> list[Rank]:
    """The processes, all of which know where to meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            Slot().command([sys.executable, "-m", module, *arguments]),
            env=environment(os.environ, address, processes, number, devices),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches them once, through the launcher
        )
        for number in range(processes)
    ]
    return [Rank(number, process) for number, process in enumerate(started)]


def environment(
    inherited: Mapping[str, str], address: str, processes: int, number: int, devices: int
) -> dict[str, str]:
    """What a process finds in its environment."""
    other_count = r"--xla_force_host_platform_device_count=\d+"
    meeting = {"coordinator": address, "processes": processes, "process": number}
    return {
        **inherited,
        **{PROCESS_VARIABLES[name]: str(value) for name, value in meeting.items()},
        "JAX_COORDINATOR_BIND_ADDRESS": address,  # not open to the network
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": re.sub(other_count, "", inherited.get("XLA_FLAGS", "")).strip(),
        "PYTHONUNBUFFERED": "1",
    }


def running(ranks: Sequence[Rank]) -> Iterator[Rank]:
    return (rank for rank in ranks if rank.exit_code is None)


def send(ranks: Sequence[Rank], number: int) -> None:
    for rank in running(ranks):
        rank.process.send_signal(number)


def first_to_fail(ranks: Sequence[Rank]) -> Rank | None:
    """Waits until all have ended, or one has failed: the first, whose error is the cause of the
    errors of those that fail after it."""
    ended: queue.Queue[Rank] = queue.Queue()

    def wait(rank: Rank) -> None:
        rank.process.wait()
        ended.put(rank)

    for rank in ranks:
        threading.Thread(target=wait, args=(rank,), daemon=True).start()
    return next((rank for rank in (ended.get() for _ in ranks) if rank.exit_code), None)


def end(ranks: Sequence[Rank], grace: float) -> None:
    """Ends those that run: they wait for one that will not come."""
    send(ranks, signal.SIGTERM)
    deadline = time.monotonic() + grace
    for rank in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):
            rank.process.wait(max(deadline - time.monotonic(), 0))
    send(ranks, signal.SIGKILL)
    for rank in ranks:
        rank.process.wait()


if __name__ == "__main__":
    own, command = split(sys.argv[1:])
    body = functools.partial(main, command=command)
    sys.exit(run_command(body, usage=USAGE, flags=FLAGS, argv=own))
