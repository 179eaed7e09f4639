"""From a sweep to checked configs: every point is built and validated before any of them runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moe_jax.config.errors import ConfigError, UserError
from moe_jax.config.json_files import Json, JsonObject
from moe_jax.config.kinds import KIND
from moe_jax.config.overrides import Overrides, load_config
from moe_jax.config.tree import from_json_dict, to_json_dict
from moe_jax.sweeps.matching import Matching
from moe_jax.sweeps.space import SEED, Point
from moe_jax.training.experiment import Experiment
from moe_jax.training.identity import identity_of, with_new_fields
from moe_jax.training.rules import cross_check

POINT_KEYS = ("name", "arm", "overrides", "config")
LONGEST_NAME = 100  # letters; a longer name is cut, and a hash of all of it appended


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One run of a sweep.

    name: its folder. overrides: what the sweep sets. arm: runs of one arm differ only in their
    seed, and have one name, which no other arm of the sweep has. experiment: the whole config.
    """

    name: str
    arm: str
    overrides: Point
    experiment: Experiment

    @property
    def seed(self) -> int:
        return self.experiment.seed

    def to_json(self) -> JsonObject:
        return {
            "name": self.name,
            "arm": self.arm,
            "overrides": self.overrides,
            "config": to_json_dict(self.experiment),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Json]) -> SweepPoint:
        """ValueError where it is no point; UserError where its config is none of this version."""
        try:
            name, arm, overrides, config = (tree[key] for key in POINT_KEYS)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"a point lacks one of {', '.join(POINT_KEYS)}") from error
        if not (isinstance(name, str) and isinstance(arm, str)):
            raise ValueError("a point's name and arm must be texts")
        if name != Path(name).name:
            raise ValueError(f"a point's name must be that of a folder, not {name!r}")
        if not (isinstance(overrides, dict) and isinstance(config, dict)):
            raise ValueError("a point's overrides and config must be objects")
        experiment = from_json_dict(config, Experiment)
        return cls(name=name, arm=arm, overrides=overrides, experiment=experiment)


def resolve(
    config: str, common: Overrides, sweep: Sequence[Mapping[str, object]], matching: Matching
) -> list[SweepPoint]:
    """The points of a sweep over a config file, in the order of the sweep.

    common: overrides of all points, which may not set what the sweep sets. Raises UserError with
    the problems of all points, and where two points are the same run.
    """
    base = load_config(config, common, Experiment)
    if not sweep:
        raise UserError("the sweep has no points")
    common = dict(common)
    if both := sorted({path for point in sweep for path in point} & common.keys()):
        raise UserError(f"both the sweep and --config. set {', '.join(both)}")
    names = short_names({path: None for point in sweep for path in point})
    target = matching.target(base)
    points, problems = [], []
    for overrides in sweep:
        name = point_name(overrides, names)
        arm = point_name({k: v for k, v in overrides.items() if k != SEED}, names)
        try:
            point = build_point(config, overrides, arm=arm, name=name, common=common)
            matching.refuse_swept(point.experiment, overrides)
            matched = matching.match(point.experiment, target)
            points.append(replace(point, experiment=matched))
        except ConfigError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
        except UserError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise UserError("\n  ".join([f"{len(problems)} problems in the sweep:", *problems]))
    _require_distinct(points)
    return _with_own_names(points)


def build_point(
    config: str,
    overrides: Mapping[str, object],
    *,
    arm: str,
    name: str,
    common: Mapping[str, object] | None = None,
) -> SweepPoint:
    """The point whose config is that of the file, with `common` and then `overrides` on top, a
    kind before its settings. Raises ConfigError, also for what does not fit together on the fewest
    devices of the mesh; how many there will be is not known here."""
    pairs = [*(common or {}).items(), *overrides.items(), ("name", name)]
    experiment = load_config(config, pairs, Experiment)
    if problems := cross_check(experiment, experiment.mesh.min_devices):
        raise ConfigError(problems)
    return SweepPoint(name=name, arm=arm, overrides=dict(overrides), experiment=experiment)


def _require_distinct(points: Sequence[SweepPoint]) -> None:
    seen: dict[str, str] = {}
    for point in points:
        config = _key(point, "name")
        if config in seen:
            raise UserError(f"the sweep has one run twice: {seen[config]} and {point.name}")
        seen[config] = point.name


def _with_own_names(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """The points with one arm a config, whatever its values were written like, and with names that
    differ where configs do: a name is cut and rounded, and says less than a config."""
    arms = _own([(_key(point, "name", SEED), point.arm) for point in points])
    runs = _own([(_key(point, "name"), point.name) for point in points])
    return [
        replace(point, name=name, arm=arm, experiment=replace(point.experiment, name=name))
        for point, arm, name in zip(points, arms, runs, strict=True)
    ]


def _own(named: Sequence[tuple[str, str]]) -> list[str]:
    """A name for each (key, name): the first of its key, and with a hash of the key where another
    key has it too."""
    first: dict[str, str] = {}
    for key, name in named:
        first.setdefault(key, name)
    taken = list(first.values())
    return [
        first[key] if taken.count(first[key]) == 1 else f"{first[key]}-{_digest(key)}"
        for key, _ in named
    ]


def _key(point: SweepPoint, *without: str) -> str:
    """The config as a text, without some of its settings."""
    config = to_json_dict(point.experiment)
    return json.dumps({k: v for k, v in config.items() if k not in without}, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def decisive(config: Mapping[str, Json]) -> JsonObject:
    """A config.json without what changes no figure of a finished run. More than what a run may not
    change when it goes on: its evaluations so far would stay, and its data is not looked at.
    Settings that are younger than the config have their defaults."""
    config = with_new_fields(config)
    kept = {**identity_of(config), "evaluation": config.get("evaluation")}
    kept["data"] = {**kept.get("data", {}), "path": config.get("data", {}).get("path")}
    return kept


def question_of(base: Experiment, **more: Json) -> JsonObject:
    """What all runs of a sweep or search have in common, whatever their seed."""
    config = decisive(to_json_dict(base))
    return {**more, "config": {k: v for k, v in config.items() if k != SEED}}


def short_names(paths: Mapping[str, object]) -> dict[str, str]:
    """For each path the shortest end of it that tells it from the others: "k" of "moe.router.k".
    The choice of a kind has the name of what is chosen: "router" of "moe.router.kind"."""
    parts = {path: path.removesuffix(f".{KIND}").split(".") for path in paths}
    found = {}
    for path, own in parts.items():
        for length in range(1, len(own) + 1):
            end = own[-length:]
            if not any(other[-length:] == end for name, other in parts.items() if name != path):
                break
        found[path] = ".".join(end)
    return found


def point_name(overrides: Mapping[str, object], names: Mapping[str, str]) -> str:
    """ "router=switch,k=1,seed=0": a folder's name on any file system; "base" without overrides."""
    parts = [f"{names[path]}={plain(value)}" for path, value in overrides.items()]
    name = ",".join(parts) or "base"
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{_digest(name)}"


def plain(value: object) -> str:
    """A value as a part of a file's name."""
    if isinstance(value, list | tuple):
        return "+".join(map(plain, value))
    text = str(value)
    if isinstance(value, float) and float(short := f"{value:g}") == value:
        text = short
    text = re.sub(r"^(-?)\.(?=\d)", r"\g<1>0.", text)  # .5 is not 5
    return re.sub(r"[^\w.+-]+", "_", text).strip("_.")
