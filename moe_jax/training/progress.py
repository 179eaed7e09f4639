"""The progress of a run on the terminal: a bar, or plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from moe_jax.config.activity import EVERY, heard, spoken_by
from moe_jax.parallel.hosts import is_primary

SHOWN = {
    "loss": ("loss", "{:.3f}"),
    "tokens_per_s": ("tokens/s", "{:,.0f}"),
    "moe/max_violation": ("MaxVio", "{:.2f}"),
    "moe/dropped_fraction": ("dropped", "{:.1%}"),
    "moe/overflow_fraction": ("overflow", "{:.1%}"),
}
REFRESH = 0.25  # seconds between two drawings of the bar
PLAIN_EVERY = EVERY - 1  # seconds between two plain lines: before others say what is going on


class Progress:
    """Use as a context manager; `update` after every step, `message` for lines of text.

    Only process 0 shows anything.
    """

    def __init__(self, total: int, start: int = 0):
        self._total, self._step = total, start
        self.start = start
        self._shown = start  # the last step that was drawn
        self._first: tuple[int, float] | None = None  # step and time of the first update
        self._active = is_primary()
        self._values: dict[str, float] = {}
        self._began = self._drawn = time.monotonic()
        self._live: Live | None = None
        self._activity = contextlib.ExitStack()
        self._noted = ""  # what else is being done, below the bar
        if self._active and sys.stdout.isatty():
            self._live = Live(console=Console(), auto_refresh=False)

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
            self._activity.enter_context(spoken_by(self._note))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown != self._step:
            self._draw(time.monotonic())
        self._activity.close()
        if self._live is not None:
            self._live.stop()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """The state after `step`; drawn at most every so often."""
        self._step = step
        self._values.update(values)
        self._noted = ""
        now = time.monotonic()
        self._first = self._first or (step, now)
        if now - self._drawn >= (REFRESH if self._live is not None else PLAIN_EVERY):
            self._draw(now)

    def _note(self, text: str) -> None:
        self._noted = text
        self._draw(time.monotonic())

    def _draw(self, now: float) -> None:
        self._shown, self._drawn = self._step, now
        message = self._line(now)
        if self._live is not None:
            lines = Table.grid(expand=True)  # two, so that narrow terminals show all of it
            lines.add_row(ProgressBar(total=self._total, completed=self._step))
            lines.add_row(message)
            if self._noted:
                lines.add_row(self._noted)
            self._live.update(lines, refresh=True)
        elif self._active:
            print(message, flush=True)
        heard()

    def message(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif self._active:
            print(text, flush=True)
        heard()

    def _line(self, now: float) -> str:
        values = [
            f"{name} {form.format(self._values[key])}"
            for key, (name, form) in SHOWN.items()
            if key in self._values
        ]
        return "  ".join((f"step {self._step}/{self._total}", self._time(now), *values))

    def _time(self, now: float) -> str:
        """What is left, at the pace since the first step, which compiles; at the end, what the
        run took."""
        first_step, then = self._first or (self._step, now)
        if self._step >= self._total or self._step == first_step:
            return f"{now - self._began:.0f} s"
        left = round((now - then) / (self._step - first_step) * (self._total - self._step))
        return f"ETA {str(timedelta(seconds=left)).removeprefix('0:')}"
