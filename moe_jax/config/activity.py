"""What a program is doing, said when it has said nothing for five seconds.

`with doing("restoring the checkpoint"):` costs nothing and says nothing where that is quick. Where
it is not, a thread says so on stderr, again and again: a line in a terminal that is written over,
else a line each time. Commands say it (`watched`), and a person's own Python does, at a prompt or
in a notebook; a program that imports this one says nothing.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import TypeVar

EVERY = 5.0  # seconds of silence
MIN_SECONDS = 1.0  # seconds that something has taken before it is said: of quick steps none is news
TICK = 0.25  # seconds between two looks

T = TypeVar("T")
Speaker = Callable[[str], None]


@dataclass(eq=False)  # the stack removes this one, not one like it
class Doing:
    """One thing that is being done. total: of how many parts it is made. first: what is to be said
    of the first of them."""

    what: str
    total: int | None = None
    unit: str = ""
    first: str = ""
    done: int = 0
    since: float = field(default_factory=time.monotonic)

    def advance(self, parts: int = 1) -> None:
        self.done += parts

    def message(self, now: float) -> str:
        parts = ""
        if self.total is not None:
            parts = f", {self.done} of {self.total}{self.unit and ' '}{self.unit}"
        elif self.done:
            parts = f", {self.done}{self.unit and ' '}{self.unit}"
        if self.first and not self.done:
            parts += f", {self.first}"
        return f"{self.what}{parts} ({now - self.since:.0f} s) ..."


class _Watch:
    """What is being done, innermost last, and who tells it."""

    def __init__(self) -> None:
        self.stack: list[Doing] = []
        self.speakers: list[Speaker] = []
        self.said = time.monotonic()
        self.speaks = False
        self.watched = False
        self.line = False  # whether an unfinished line stands in the terminal
        self.lock = threading.RLock()

    def look(self) -> None:
        with self.lock:
            now = time.monotonic()
            if not (self.speaks and self.stack) or now - self.said < self._pause():
                return
            if now - self.stack[-1].since < min(MIN_SECONDS, EVERY):
                return
            self.said = now
            text = self.stack[-1].message(now)
            if self.speakers:
                self.speakers[-1](text)
            elif sys.stderr.isatty():
                sys.stderr.write(f"\r\x1b[2K{text}")
                sys.stderr.flush()
                self.line = True
            else:
                sys.stderr.write(text + "\n")
                sys.stderr.flush()

    def _pause(self) -> float:
        """A line that is written over may follow what happens."""
        return TICK if self.line else EVERY

    def wipe(self) -> None:
        if self.line:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self.line = False


_watch = _Watch()


@contextlib.contextmanager
def doing(what: str, total: int | None = None, unit: str = "", first: str = "") -> Iterator[Doing]:
    """Says `what` while the body takes long, and how many of `total` parts are done."""
    one = Doing(what, total, unit, first)
    with _watch.lock:
        _watch.wipe()
        _watch.stack.append(one)
    alone = is_interactive() and not _watch.watched
    with watched() if alone else contextlib.nullcontext():
        try:
            yield one
        finally:
            with _watch.lock:
                _watch.wipe()
                _watch.stack.remove(one)


def counted(what: str, parts: Iterable[T], unit: str, first: str = "") -> Iterator[T]:
    """The parts, one after the other; says `what` and how many of them are done."""
    total = len(parts) if isinstance(parts, Sized) else None
    with doing(what, total, unit, first) as one:
        for part in parts:
            yield part
            one.advance()


def heard() -> None:
    """Something else was said just now."""
    with _watch.lock:
        _watch.wipe()
        _watch.said = time.monotonic()


@contextlib.contextmanager
def spoken_by(speaker: Speaker) -> Iterator[None]:
    """Within the body `teller` says it, for who draws on the terminal."""
    with _watch.lock:
        _watch.wipe()
        _watch.speakers.append(speaker)
    try:
        yield
    finally:
        with _watch.lock:
            _watch.speakers.remove(speaker)


def speak(speaks: bool) -> None:
    """Whether this process says anything: of several, one does."""
    _watch.speaks = speaks


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Within the body what is being done is said."""
    end, before = threading.Event(), (_watch.speaks, _watch.watched)
    _watch.speaks, _watch.watched, _watch.said = True, True, time.monotonic()

    def watch() -> None:
        while not end.wait(min(TICK, EVERY / 4)):
            _watch.look()

    thread = threading.Thread(target=watch, name="activity", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        _watch.speaks, _watch.watched = before


def is_interactive() -> bool:
    """Whether a person types into this Python: a prompt, IPython or a notebook."""
    return hasattr(sys, "ps1") or "get_ipython" in vars(builtins)
