"""Where metrics go: metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.typing import ArrayLike

from moe_jax.config.fields import Rule, at_least
from moe_jax.config.json_files import Json, parsed
from moe_jax.config.paths import Lines, Staged, folder_of, write_whole
from moe_jax.parallel.hosts import is_primary
from moe_jax.training.tracking import Tracker

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

HISTOGRAM_BINS = 30  # as many as TensorBoard shows
FLUSH_EVERY = 10.0  # seconds between two flushes of the event file


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is written, and how often (in steps; 0: never)."""

    every: int = 10  # training metrics
    load_every: int = 50  # load per layer and expert (heat maps, histograms)
    probe_every: int = 50  # routes of a fixed set of rows: churn, margin, overlap
    probe_rows: int = 16  # how many, at most an evaluation batch
    tensorboard: bool = True
    wandb: bool = False
    profile_steps: tuple[int, ...] = ()  # (first, last): a profiler trace of these steps

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "every", "probe_rows")
        yield from at_least(self, 0, "load_every", "probe_every")
        if len(self.profile_steps) not in (0, 2):
            yield "profile_steps", "must be empty or (first, last)"
        elif self.profile_steps and not 0 <= self.profile_steps[0] <= self.profile_steps[1]:
            yield "profile_steps", "must be (first, last) with 0 <= first <= last"


class MetricWriter:
    """Writes the metrics of a run; a context manager. Only process 0 writes.

    metrics.jsonl has one JSON object a line: "step", "split" and the metrics, numbers or lists of
    numbers; NaN and inf are null. A run that goes on from `start_step` first drops the lines of
    later steps and a torn last line, so that no step stands there twice.

    run_config: the run's whole config, for who keeps it beside the metrics (wandb).
    """

    def __init__(
        self,
        directory: Path,
        config: LoggingConfig,
        start_step: int = 0,
        *,
        run_config: Mapping[str, Json] | None = None,
    ):
        self.directory = folder_of(directory)
        self._active = is_primary()
        self._board: Board | None = None
        self._tracker: Tracker | None = None
        if not self._active:
            return
        if config.wandb:
            self._tracker = Tracker(self.directory, run_config or {})
        path = self.directory / "metrics.jsonl"
        drop_after(path, start_step)
        self._lines = Lines(path)
        if config.tensorboard:
            self._board = Board(self.directory / "tensorboard", start_step)

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(failed=error is not None)

    def write(self, step: int, metrics: Mapping[str, Json], *, split: str) -> None:
        """Writes the metrics of one step."""
        if not self._active:
            return
        plain = {name: _plain(value) for name, value in metrics.items()}
        self._lines.add(json.dumps({"step": step, "split": split, **plain}))
        if self._board is not None:
            self._board.write(step, {f"{split}/{name}": v for name, v in metrics.items()})
        if self._tracker is not None:
            self._tracker.write(step, {f"{split}/{name}": v for name, v in metrics.items()})

    def send(self) -> None:
        """What was written is in the workdir when it returns, where that is in an object store: a
        checkpoint must not be ahead of the metrics, which are not written anew."""
        if not self._active:
            return
        self._lines.send()
        if self._board is not None:
            self._board.send()

    def close(self, *, failed: bool = False) -> None:
        if not self._active:
            return
        self._lines.close()
        if self._board is not None:
            self._board.close()
        if self._tracker is not None:
            self._tracker.close(failed=failed)


class Board:
    """An event file for TensorBoard: numbers as scalars, lists as histograms.

    Where the folder is in an object store the file is written in a temporary folder, and sent there
    with each checkpoint and when it is closed. Written by the caller's own thread: tensorboardX's
    SummaryWriter has one for it, and where that dies, of a full disk say, the run waits for it for
    ever.
    """

    def __init__(self, folder: Path, start_step: int):
        # Imported only when it writes: it imports torch if that is installed, which takes a second.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(exist_ok=True)
        self._folder = Staged(folder)
        self._unsent = False
        # With the step: two starts in one second would else share a file, the second emptying it.
        self._events = EventsWriter(str(self._folder.local / "events"), f".{start_step}")
        self._flushed = time.monotonic()
        later_steps_are_void = SessionLog(status=SessionLog.START)
        self._add(Event(session_log=later_steps_are_void, step=start_step + 1))

    def write(self, step: int, metrics: Mapping[str, Json]) -> None:
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values: list[Summary.Value] = []
        for name, value in metrics.items():
            if np.ndim(value) == 0:
                values += summary.scalar(name, float(value)).value
                continue
            array = np.asarray(value, np.float64)
            if (finite := array[np.isfinite(array)]).size:  # NaN has no place in a histogram
                values += summary.histogram(name, finite, HISTOGRAM_BINS).value
        self._add(Event(step=step, summary=Summary(value=values)))
        if time.monotonic() - self._flushed > FLUSH_EVERY:
            self._events.flush()
            self._flushed = time.monotonic()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)
        self._unsent = True

    def send(self) -> None:
        if self._unsent:
            self._events.flush()
            self._folder.send()
            self._unsent = False

    def close(self) -> None:
        self.send()
        self._events.close()
        self._folder.close()


class Profile:
    """A trace of the profiler, which itself writes to local folders only."""

    def __init__(self, folder: Path):
        self._folder = Staged(folder)
        jax.profiler.start_trace(str(self._folder.local))

    def stop(self) -> None:
        jax.profiler.stop_trace()
        self._folder.send()
        self._folder.close()


def drop_after(path: Path, step: int) -> None:
    """Removes the lines of steps after `step` and what is no whole line (a write that was torn),
    atomically."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().split(b"\n"):
        try:
            if parsed(line)["step"] <= step:
                kept.append(line + b"\n")
        except (ValueError, TypeError, KeyError):
            continue
    write_whole(path, b"".join(kept).decode())


def _plain(value: ArrayLike | Sequence[float]) -> Json:
    """A JSON value of a number, array or list; null for what JSON cannot hold."""
    if np.ndim(value) > 0:
        return [_plain(item) for item in np.asarray(value).tolist()]
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, float) and not math.isfinite(number):
        return None
    return number
