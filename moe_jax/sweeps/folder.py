"""The folder of a sweep.

question.json           what is asked, and at which commit it was first: held to afterwards
sweep.json              the points: names, overrides, whole configs
points/NAME/            a run's workdir, with log.txt and, when it is done, outcome.json
results.csv, .json      a row a point          arms.csv       a row an arm, over its seeds
report.html
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_jax.config.diff import difference
from moe_jax.config.environment import git_revision
from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json, JsonObject, read_value
from moe_jax.config.paths import folder_of, is_remote, write_whole
from moe_jax.config.tree import to_json_dict
from moe_jax.sweeps.engine import Job, is_done
from moe_jax.sweeps.points import SweepPoint, decisive
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
from moe_jax.training.workdir import names_of

SWEEP, POINTS, CONFIG, QUESTION = "sweep.json", "points", "config.json", "question.json"
TABLES = ("results.json", "results.csv", "arms.csv", "report.html")
MAX_LINES = 20  # of a refusal


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
        points = _read(file)
        try:
            if not isinstance(points, list):
                raise ValueError("it is no list")
            return [SweepPoint.from_json(tree) for tree in points]
        except ValueError as error:
            raise UserError(f"{file}: holds no points of a sweep ({error})") from error

    def known(self) -> list[SweepPoint]:
        """The points of earlier sweeps, none where the folder is new."""
        return self.read() if (self.path / SWEEP).is_file() else []

    def question(self) -> Mapping[str, Json] | None:
        """{"asked", "git"}: what the folder was made for, and the commit at which it was. None
        where it does not say."""
        file = self.path / QUESTION
        if not file.is_file():
            return None
        question = _read(file)
        if not isinstance(question, dict) or not {"asked", "git"} <= question.keys():
            raise UserError(f"{file}: does not say what was asked; remove it, or use another --out")
        return question

    def remember(self, asked: Mapping[str, Json]) -> None:
        """Writes what is asked, once. UserError where the folder was made for something else: its
        figures answer that."""
        self._refuse(self._otherwise(asked))
        if self.question() is None:
            known = {"asked": asked, "git": git_revision()}
            self._make(self.path)
            _write(self.path / QUESTION, json.dumps(known, indent=1) + "\n")

    def prepare(
        self, points: Sequence[SweepPoint], asked: Mapping[str, Json] | None = None
    ) -> list[SweepPoint]:
        """Writes the sweep, and each point's config; returns the points of the folder, those of
        earlier sweeps too. What is there stays as it is; UserError, and nothing is written, where
        it was asked otherwise or a point of the same name has another config."""
        changed = self._otherwise(asked) if asked is not None else []
        self._refuse(changed + [line for point in points for line in self.changes(point)])
        known = self.known()
        for name in TABLES:
            if (self.path / name).is_dir():
                raise UserError(f"{self.path / name}: is a folder, and a table is to be there")
        if asked is not None:
            self.remember(asked)
        for point in points:
            if not is_done(self.point_folder(point)):
                self.write_config(point)
        named = {point.name: point for point in known} | {point.name: point for point in points}
        self.write_points(list(named.values()))
        return list(named.values())

    def _refuse(self, changed: Sequence[str]) -> None:
        if changed:
            more = ["..."] if len(changed) > MAX_LINES else []
            message = "\n  ".join([*changed[:MAX_LINES], *more])
            raise UserError(
                f"{self.path} holds runs of another question (there -> here):\n  {message}\n"
                "Use another --out."
            )

    def _otherwise(self, asked: Mapping[str, Json]) -> list[str]:
        known = self.question()
        if known is None:
            return []
        return difference(by_name(_completed(known["asked"])), by_name(_completed(asked)))

    def write_config(self, point: SweepPoint) -> None:
        """Makes the folder of a point, from whose config it is started."""
        folder = self.point_folder(point)
        self._make(folder)
        _write(folder / CONFIG, json.dumps(to_json_dict(point.experiment), indent=2) + "\n")

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out={self.path}: cannot be written ({error.strerror})") from error

    def write_points(self, points: Sequence[SweepPoint]) -> None:
        """Writes which points there are."""
        trees = [point.to_json() for point in points]
        _write(self.path / SWEEP, json.dumps(trees, indent=1) + "\n")

    def changes(self, point: SweepPoint) -> list[str]:
        """What the folder's point of this name has otherwise, a line each. A run that has begun
        has written down what the point leaves to its data."""
        folder = self.point_folder(point)
        if not (folder / CONFIG).is_file():
            return []
        old, asked = _read(folder / CONFIG), point.experiment
        for new in (asked, asked.with_info(names_of(folder))):
            found = difference(decisive(old), decisive(to_json_dict(new)), point.name)
            if not found:
                break
        return found

    def job(self, point: SweepPoint, command: Sequence[str] | None = None) -> Job:
        """The point as a process: of moe_jax.train, unless another command is given."""
        folder, steps = self.point_folder(point), point.experiment.steps
        return Job(
            name=point.name,
            command=command or self.command(point),
            folder=folder,
            whole=lambda: evaluated(folder, steps),
            steps=steps,
            headlines=[h.name for h in point.experiment.task.headlines],
            variables={"WANDB_RUN_GROUP": self.path.absolute().name},
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
        records: list[JsonObject] = to_records(rows)
        arms = arm_records(arms_of(rows, metric, baseline), metric)
        _write(self.path / "results.json", json.dumps(records, indent=1) + "\n")
        _write(self.path / "results.csv", to_csv(records))
        _write(self.path / "arms.csv", to_csv(arms))
        return rows


def by_name(tree: Json) -> Json:
    """The tree with lists of objects as objects, by their name or number, so that a difference is
    told where it is."""
    if isinstance(tree, Mapping):
        return {key: by_name(value) for key, value in tree.items()}
    if isinstance(tree, list) and tree and all(isinstance(item, Mapping) for item in tree):
        return {str(item.get("name", n)): by_name(item) for n, item in enumerate(tree)}
    return tree


def _read(file: Path) -> Json:
    try:
        return read_value(file)
    except UserError as error:
        raise UserError(f"{error}; remove it, or use another --out") from error


def _write(file: Path, text: str) -> None:
    """UserError where a folder stands in the way or nothing may be written; a full disk is told
    as ever."""
    try:
        write_whole(file, text)
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from error


def _completed(asked: Mapping[str, Json]) -> JsonObject:
    """A question whose config has the settings that are younger than it."""
    config = asked.get("config")
    return {**asked, "config": decisive(config)} if isinstance(config, Mapping) else dict(asked)
