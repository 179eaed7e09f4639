"""The folder of a sweep.

sweep.json              the points: names, overrides, whole configs
points/NAME/            a run's workdir, with log.txt and, when it is done, outcome.json
results.csv, .json      a row a point          arms.csv       a row an arm, over its seeds
report.html
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_jax.config.diff import difference
from moe_jax.config.errors import UserError
from moe_jax.config.paths import folder_of, is_remote, write_whole
from moe_jax.config.tree import to_json_dict
from moe_jax.sweeps.engine import Job
from moe_jax.sweeps.points import SweepPoint
from moe_jax.sweeps.table import (
    Row,
    arm_records,
    arms_of,
    default_metric,
    evaluated,
    read_row,
    to_csv,
    to_records,
)
from moe_jax.training.loop import pinned

SWEEP, POINTS, CONFIG = "sweep.json", "points", "config.json"


class SweepFolder:
    """A sweep on disk."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = folder_of(path)
        if is_remote(self.path):
            raise UserError(f"--out={path}: a sweep needs a file system, for its locks")

    def point_folder(self, point: SweepPoint) -> Path:
        return self.path / POINTS / point.name

    def read(self) -> list[SweepPoint]:
        """The points of the sweep that the folder holds. UserError where it holds none."""
        file = self.path / SWEEP
        if not file.is_file():
            raise UserError(f"{self.path}: holds no sweep (no {SWEEP})")
        return [SweepPoint.from_json(tree) for tree in json.loads(file.read_text("utf-8"))]

    def prepare(self, points: Sequence[SweepPoint]) -> None:
        """Writes the sweep, and each point's config. Points that are there already stay as they
        are; UserError, and nothing is written, where one of the same name has another config."""
        changed = [line for point in points for line in self._changes(point)]
        if changed:
            told = "\n  ".join([*changed[:20], *(["..."] if len(changed) > 20 else [])])
            raise UserError(
                f"{self.path} holds other runs by the names of this sweep:\n  {told}\n"
                "Use another --out."
            )
        for point in points:
            self.write_config(point)
        self.write_points(points)

    def write_config(self, point: SweepPoint) -> None:
        """Makes the folder of a point, from whose config it is started."""
        folder = self.point_folder(point)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            config = json.dumps(to_json_dict(point.experiment), indent=2) + "\n"
            write_whole(folder / CONFIG, config)
        except OSError as error:
            raise UserError(f"--out={self.path}: cannot be written ({error.strerror})") from error

    def write_points(self, points: Sequence[SweepPoint]) -> None:
        """Writes which points there are."""
        trees = [point.to_json() for point in points]
        write_whole(self.path / SWEEP, json.dumps(trees, indent=1) + "\n")

    def _changes(self, point: SweepPoint) -> list[str]:
        file = self.point_folder(point) / CONFIG
        if not file.is_file():
            return []
        old, new = json.loads(file.read_text("utf-8")), to_json_dict(point.experiment)
        return difference(pinned(old), pinned(new), point.name)

    def job(self, point: SweepPoint, command: Sequence[str] | None = None) -> Job:
        """The point as a process: of moe_jax.train, unless another command is given."""
        folder, steps = self.point_folder(point), point.experiment.steps
        return Job(
            name=point.name,
            command=command or self.command(point),
            folder=folder,
            whole=lambda: evaluated(folder, steps),
            steps=steps,
        )

    def command(self, point: SweepPoint) -> list[str]:
        """What trains the point, or goes on with it, here or wherever the folder can be seen."""
        folder = self.point_folder(point)
        return [
            *(sys.executable, "-m", "moe_jax.train"),
            *(f"--config={folder / CONFIG}", f"--workdir={folder}", "--processes=1"),
        ]

    def rows(self, points: Sequence[SweepPoint]) -> list[Row]:
        return [read_row(point, self.point_folder(point)) for point in points]

    def write_results(
        self, points: Sequence[SweepPoint], metric: str | None, baseline: str | None
    ) -> list[Row]:
        """results.csv, results.json and arms.csv of what is done."""
        rows = self.rows(points)
        metric = metric or default_metric(rows)
        records: list[dict[str, Any]] = to_records(rows)
        arms = arm_records(arms_of(rows, metric, baseline), metric)
        write_whole(self.path / "results.json", json.dumps(records, indent=1) + "\n")
        write_whole(self.path / "results.csv", to_csv(records))
        write_whole(self.path / "arms.csv", to_csv(arms))
        return rows
