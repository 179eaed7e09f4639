"""What a workdir says about its run: metrics.jsonl, config.json, environment.json."""

from __future__ import annotations

import itertools
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json, JsonObject, read_lines, read_object
from moe_jax.config.paths import folder_of, resolved

SPLITS = ("train", "eval")
LONG_NAME = 24
_LAYER = re.compile(r"moe/layer_(\d+)/(.+)")


@dataclass(frozen=True)
class Series:
    """One metric over training. steps: (n,), ascending. values: (n,), or (n, E) for a metric with
    one number per expert; nan where it was not finite."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        """The last value that is finite, else nan."""
        finite = self.values[np.isfinite(self.values)]
        return float(finite[-1]) if finite.size else float("nan")


@dataclass(frozen=True)
class RunRecord:
    """All that was written of a run.

    series: (split, name) -> Series, names as in metrics.jsonl. config, environment, data: the
    content of their files, {} where the file is absent. name: short, and its own among runs read
    together.
    """

    workdir: Path
    name: str
    config: Mapping[str, Json]
    environment: Mapping[str, Json]
    series: Mapping[tuple[str, str], Series]
    data: Mapping[str, Json] = field(default_factory=dict)

    @property
    def rows_by_domain(self) -> dict[str, int]:
        """Training rows of each domain, where the run has said so."""
        rows = self.data.get("rows_by_domain")
        return (
            {str(k): v for k, v in rows.items() if type(v) is int} if isinstance(rows, dict) else {}
        )

    @property
    def last_step(self) -> int:
        return max(int(series.steps[-1]) for series in self.series.values())

    def names(self) -> list[str]:
        """The metrics that are there in any split, in the order of the file."""
        return list(dict.fromkeys(name for _, name in self.series))

    def get(self, name: str, *splits: str) -> Series | None:
        """The metric in the first of `splits` (default: train, eval) that has it."""
        for split in splits or SPLITS:
            if (split, name) in self.series:
                return self.series[split, name]
        return None

    def __getitem__(self, name: str) -> Series:
        """`get` of a metric that must be there. KeyError where it is not."""
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def at_the_end(self, name: str) -> Series | None:
        """The metric in the split that describes a run's end: eval where it is there."""
        return self.get(name, "eval", "train")

    def layers(self, name: str) -> list[int]:
        """Numbers of the layers that have `moe/layer_07/NAME`."""
        found = (layer_of(full) for full in self.names())
        return sorted(layer for layer, metric in found if layer is not None and metric == name)


def layer_of(name: str) -> tuple[int | None, str]:
    """(7, "load") of "moe/layer_07/load"; (None, name) of any other metric."""
    match = _LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def layer_name(layer: int, metric: str) -> str:
    """The name of a layer's metric: "moe/layer_07/load"."""
    return f"moe/layer_{layer:02d}/{metric}"


def read_metrics(workdir: str | os.PathLike[str]) -> list[JsonObject]:
    """The lines of DIR/metrics.jsonl, ordered by step.

    Lines that are no JSON object with a "step" are left out: a process that is killed, or is just
    writing, leaves a torn one. So are lines that a resumed run has written anew. Non-finite values
    are None. Raises UserError where there is no such file or nothing in it.
    """
    lines: list[JsonObject] = []
    for line in _lines(workdir):
        if lines and line["step"] < lines[-1]["step"]:
            while lines and lines[-1]["step"] >= line["step"]:
                lines.pop()
        lines.append(line)
    return lines


def read_runs(workdirs: Sequence[str | os.PathLike[str]]) -> list[RunRecord]:
    """The records of several runs, each workdir once. Raises UserError as `read_metrics` does."""
    folders = list(dict.fromkeys(map(resolved, workdirs)))
    return [
        RunRecord(
            workdir=folder,
            name=name,
            config=_read_object(folder / "config.json"),
            environment=_read_object(folder / "environment.json"),
            data=_read_object(folder / "data.json"),
            series=_read_series(folder),
        )
        for folder, name in zip(folders, _short_names(folders), strict=True)
    ]


def _lines(workdir: str | os.PathLike[str]) -> Iterator[JsonObject]:
    folder = folder_of(workdir)
    if not folder.is_dir():
        raise UserError(f"{workdir}: no such folder")
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise UserError(f"{workdir}: no metrics.jsonl here; moe_jax.train writes it while it runs")
    found = False
    for line in read_lines(file):
        if isinstance(line.get("step"), int):
            found = True
            yield line
    if not found:
        raise UserError(f"{file}: holds no metrics yet; wait for the first logged step")


class _Growing:
    """A Series while its file is read: flat arrays, since a long run has millions of numbers."""

    def __init__(self, width: int | None):
        self.width = width  # None: one number a step
        self.steps = array("q")
        self.values = array("d")

    def add(self, step: int, value: Json) -> None:
        row = [value] if self.width is None else value
        if len(row) != (self.width or 1):
            return
        if self.steps and self.steps[-1] == step:
            self.cut(step)
        self.steps.append(step)
        self.values.extend(float("nan") if number is None else number for number in row)

    def cut(self, step: int) -> None:
        """Forgets what is at `step` and later."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            del self.values[-(self.width or 1) :]

    def done(self) -> Series:
        values = np.array(self.values)
        values[~np.isfinite(values)] = np.nan
        shape = (-1,) if self.width is None else (-1, self.width)
        return Series(np.array(self.steps), values.reshape(shape))


def _read_series(folder: Path) -> dict[tuple[str, str], Series]:
    growing: dict[tuple[str, str], _Growing] = {}
    last = 0
    for line in _lines(folder):
        step, split = line["step"], str(line.get("split", "train"))
        if step < last:
            for grown in growing.values():
                grown.cut(step)
        last = step
        for name, value in line.items():
            if name == "step" or not _is_metric(value):
                continue
            key = (split, name)
            if key not in growing:
                growing[key] = _Growing(len(value) if isinstance(value, list) else None)
            if isinstance(value, list) == (growing[key].width is not None):
                growing[key].add(step, value)
    series = {key: grown.done() for key, grown in growing.items() if grown.steps}
    if not series:
        raise UserError(f"{folder / 'metrics.jsonl'}: holds no metrics yet")
    return series


def _is_metric(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_metric(x) and not isinstance(x, list) for x in value)
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _read_object(file: Path) -> JsonObject:
    try:
        return read_object(file)
    except FileNotFoundError:
        return {}


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart: "lr_1/seed_0", "lr_2/seed_0".

    Of long names, what they all begin or end with is left out: "…lr_1", "…lr_2".
    """
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    if len(names) == 1 or max(map(len, names)) <= LONG_NAME:
        return names
    start = len(_shared(names))
    names = [name[start:] for name in names]
    end = len(_shared([name[::-1] for name in names]))
    return [
        ("…" if start else "") + name[: len(name) - end] + ("…" if end else "") for name in names
    ]


def _shared(texts: Sequence[str]) -> str:
    """What all texts begin with, up to its last separator."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    start = "".join(letters[0] for letters in same)
    return start[: max(start.rfind(mark) for mark in "_/ ") + 1]
