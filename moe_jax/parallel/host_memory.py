"""The memory of the host."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def available_memory() -> int | None:
    """Bytes that processes of this machine may still take without swapping; None where the system
    does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None


def keep_freed_memory() -> bool:
    """Keeps what this process frees for its next allocation; True where the C library does so.

    XLA on CPU allocates the temporary arrays of every step anew. By default glibc asks the system
    for each large one and gives it back after the step, and the system clears every page: about a
    sixth of the quickstart's step. In return the process stays as large as its largest moment.
    Elsewhere than with glibc nothing happens. To be called before the first computation.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_ARENA_MAX, 1))
    results = [mallopt(name, value) for name, value in settings]
    return all(result == 1 for result in results)
