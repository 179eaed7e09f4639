"""Signals that ask a run to stop, as a flag that the loop polls."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopSignals:
    """Within the context SIGTERM, SIGINT (Ctrl-C) and SIGUSR2 (SLURM's warning) set `stop`.

    A second SIGINT raises KeyboardInterrupt. Outside the main thread nothing is changed, since
    Python allows handlers only there.
    """

    def __init__(self) -> None:
        self.stop = False
        self.name = ""
        self._old: dict[signal.Signals, object] = {}

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
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop, self.name = True, signal.Signals(number).name
