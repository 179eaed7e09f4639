"""A program that becomes another: `python enter.py CORES PARENT COMMAND ...`.

It takes the cores (numbers with commas, or nothing), lets signals through that its parent holds
back, and asks Linux for SIGTERM when its parent, of process number PARENT, dies, so that what is
killed leaves nothing running. All outlive exec. A process of its own because Python code between
fork and exec may deadlock in a parent with threads, which JAX starts.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(cores: str, parent: str, *command: str) -> None:
    if cores:
        os.sched_setaffinity(0, map(int, cores.split(",")))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):
            sys.exit("the parent has died meanwhile")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
