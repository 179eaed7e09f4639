"""Signals that ask a run to stop, as a flag that the loop polls."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopSignals:
    """Within the context SIGTERM, SIGINT (Ctrl-C) and SIGUSR2 (SLURM's warning) set `number`, which
    is 0 before, to that of the first that came.

    A second SIGINT raises KeyboardInterrupt. Outside the main thread nothing is changed, since
    Python allows handlers only there.
    """

    def __init__(self) -> None:
        self.number = 0
        self._interrupted = False
        self._old: dict[signal.Signals, object] = {}

    @property
    def stop(self) -> bool:
        """Whether one has come."""
        return self.number != 0

    @property
    def name(self) -> str:
        """Of the one that came."""
        return signal_name(self.number)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            # None: installed by something other than Python, which alone could bring it back.
            signal.signal(number, handler or signal.SIG_DFL)  # type: ignore[arg-type]
        self._old = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        if not self.stop:
            self.number = int(number)
            # Not print, which may be what was interrupted.
            again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
            message = f"\n{self.name}: saving and stopping after this step{again}\n"
            with contextlib.suppress(OSError):
                os.write(2, message.encode())


def signal_name(number: int) -> str:
    """ "SIGTERM" of 15; "" of 0."""
    return signal.Signals(number).name if number else ""
