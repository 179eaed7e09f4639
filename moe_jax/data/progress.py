"""What preparing a dataset tells while it works."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter(Protocol):
    """Hears of the stages of the work."""

    def message(self, text: str) -> None:
        """One line that stays."""
        ...

    def stage(self, text: str, total: int | None = None) -> None:
        """The next stage begins; total: its number of documents, None where nobody knows."""
        ...

    def advance(self, documents: int) -> None: ...


class Silent:
    """Tells nothing."""

    def message(self, text: str) -> None: ...

    def stage(self, text: str, total: int | None = None) -> None: ...

    def advance(self, documents: int) -> None: ...


class ConsoleReporter:
    """A progress bar on a terminal; elsewhere messages and, if asked for, a line a stage.

    On stderr, for what commands print on stdout may be read by programs.
    """

    def __init__(self, console: Console | None = None, *, lines: bool = True):
        self._lines = lines
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._documents = 0

    def __enter__(self) -> ConsoleReporter:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._fill()
        self._bar.stop()

    def message(self, text: str) -> None:
        self._console.print(text, markup=False)

    def stage(self, text: str, total: int | None = None) -> None:
        self._fill()
        self._task, self._documents = self._bar.add_task(text, total=total), 0
        if self._bar.disable and self._lines:
            self.message(f"  {text}")

    def advance(self, documents: int) -> None:
        self._documents += documents
        if self._task is not None:
            self._bar.update(self._task, completed=self._documents)

    def _fill(self) -> None:
        """Ends the bar of a stage whose number of documents was not known."""
        if self._task is not None:
            self._bar.update(self._task, total=self._documents, completed=self._documents)
