"""One writer for each folder: a lock that says who holds it and that a dead process does not hold.

On a file system it is `flock`, which ends with the process, however that ends. In an object store,
and on file systems without locks, it is a lease: a small file that its holder renews; one that is
no longer renewed, or whose process is known to be dead, is taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TextIO

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import JsonObject, parsed
from moe_jax.config.paths import is_remote, write_whole

FILE = ".lock"
RENEWED = 10.0  # seconds between two renewals of a lease
STALE = 45.0  # seconds without one after which it is taken over
LONG_AGO = 600.0  # seconds: so old a lease is taken over at once, whatever the clocks are off by


class FolderLock:
    """Held from `__enter__` to `__exit__`. UserError at once where another process holds it.

    what: what is written there, for the message of the one that comes second.
    """

    def __init__(self, folder: Path, what: str):
        self._file, self._folder = folder / FILE, folder
        self._mine = {**this_process(), "what": what, "id": uuid.uuid4().hex}
        self._stream: TextIO | None = None
        self._end = threading.Event()
        self._renewing: threading.Thread | None = None
        self._taken: JsonObject | None = None

    def __enter__(self) -> FolderLock:
        if is_remote(self._folder) or not self._flock():
            self._lease()
        return self

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._file.unlink()
            self._stream.close()
            self._stream = None
        if self._renewing is not None:
            self._end.set()
            self._renewing.join()
            if self._taken is None:
                with contextlib.suppress(OSError):
                    self._file.unlink()

    def check(self) -> None:
        """UserError where another process has taken the lease over: this one was away too long."""
        if self._taken is not None:
            raise UserError(
                f"{self._folder}: {holder_text(self._taken)} has taken it over, because this "
                f"process did not renew its lock for {STALE:.0f} seconds; it stops here",
                exit_code=1,
            )

    def _flock(self) -> bool:
        """False where the file system has no locks."""
        try:
            import fcntl
        except ImportError:  # Windows
            return False
        while True:
            stream = self._file.open("a+", encoding="utf-8", errors="replace")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                holder = holder_of(stream.read())
                stream.close()
                raise self._refusal(holder) from None
            except OSError:
                stream.close()
                return False
            if _is_same_file(stream, self._file):
                break
            stream.close()  # the one before has removed it meanwhile
        self._stream = stream
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its text
            stream.truncate(0)
            stream.write(json.dumps(self._mine) + "\n")
            stream.flush()
        return True

    def _lease(self) -> None:
        held, since = self._read(), time.monotonic()
        if held is not None and not is_dead(held) and _age(held) < LONG_AGO:
            sys.stderr.write(
                f"{self._folder}: {holder_text(held)} wrote here {_age(held):.0f} seconds ago; "
                f"waiting to see whether it still does (at most {STALE:.0f} s) ...\n"
            )
            while time.monotonic() - since < STALE:
                time.sleep(0.5)
                now = self._read()
                if now is None:
                    break
                if now != held:
                    raise self._refusal(now)
        self._renew()
        time.sleep(0.2)  # of two that come at once, the one that wrote last has it
        now = self._read()
        if now is None or now.get("id") != self._mine["id"]:
            raise self._refusal(now)
        self._renewing = threading.Thread(target=self._keep, name="lock", daemon=True)
        self._renewing.start()

    def _keep(self) -> None:
        while not self._end.wait(RENEWED):
            with contextlib.suppress(OSError):  # the next time, perhaps
                now = self._read()
                if now is not None and now.get("id") != self._mine["id"]:
                    self._taken = now
                    return
                self._renew()

    def _renew(self) -> None:
        write_whole(self._file, json.dumps({**self._mine, "renewed": time.time()}) + "\n")

    def _read(self) -> JsonObject | None:
        try:
            text = self._file.read_bytes().decode("utf-8", "replace")
        except OSError:
            return None
        return holder_of(text) or None

    def _refusal(self, holder: JsonObject | None) -> UserError:
        return UserError(
            f"{self._folder}: {holder_text(holder or {})} is writing here; wait until it ends, "
            "stop it, or take another folder"
        )


def _is_same_file(stream: TextIO, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    return False


def this_process() -> JsonObject:
    """Who this is, as the lock's file says it."""
    command = " ".join(sys.argv)[:300]
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command,
    }


def is_dead(holder: JsonObject) -> bool:
    """Whether the holder is known to have ended: a process of this machine that is no more."""
    if holder.get("host") != socket.gethostname():
        return False
    pid = holder.get("pid")
    return not isinstance(pid, int) or _started(pid) != holder.get("started")


def _age(holder: JsonObject) -> float:
    """Seconds since the lease was renewed, by clocks that may differ."""
    renewed = holder.get("renewed")
    return time.time() - renewed if isinstance(renewed, int | float) else LONG_AGO


def _started(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's own count; None for none. A number
    of a process comes again, this does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        if Path("/proc/self").exists():
            return None
        try:  # a system without /proc
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            return "unknown"
        return "unknown"
    return text.rpartition(")")[2].split()[19]


def holder_of(text: str) -> JsonObject:
    """The lock file's content; {} where it cannot be read."""
    try:
        found = parsed(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def holder_text(holder: JsonObject) -> str:
    """A holder in a message."""
    if "pid" not in holder:
        return "another process"
    return (
        f"process {holder['pid']} on {holder.get('host')} ({holder.get('what')}, since "
        f"{holder.get('since')})"
    )
