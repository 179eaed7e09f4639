"""Scalars that may follow a schedule: loss coefficients, noise, rates of bias.

A `schedulable` field of the config reaches the compiled step as a float32 argument, so that a
schedule, or another value, needs no new compilation. Schedules are texts in
``Experiment.schedules``:

    moe.losses.load_balance.coefficient = linear(0, 0.01, 1000)
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from moe_jax.config.errors import ConfigError, Problem
from moe_jax.config.fields import Rule
from moe_jax.config.nearest import choices, nearest_path
from moe_jax.config.tree import join, leaves, settings, value_at
from moe_jax.config.values import InvalidValue

T = TypeVar("T")


class HasSchedules(Protocol):
    """A config with schedules for its scalars: an `Experiment`."""

    @property
    def schedules(self) -> tuple[str, ...]: ...


class Schedule(Protocol):
    """A value for each step. Made from the numbers in its text; InvalidValue for wrong ones."""

    def __call__(self, step: int) -> float: ...

    def knots(self) -> tuple[int, ...]:
        """Steps between which the value is monotone; the last value holds for ever."""
        ...


@dataclass(frozen=True)
class ConstantSchedule:
    """constant(value)"""

    value: float

    def __call__(self, step: int) -> float:
        return self.value

    def knots(self) -> tuple[int, ...]:
        return (0,)


@dataclass(frozen=True)
class Ramp:
    """From `start` at step 0 to `end` at step `steps`, and `end` from there on."""

    start: float
    end: float
    steps: float

    def __post_init__(self) -> None:
        if self.steps < 1 or self.steps != int(self.steps):
            raise InvalidValue(f"steps = {self.steps:g} must be an integer, at least 1")

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end  # exactly, whatever the rounding
        return self.between(max(step, 0) / self.steps)

    def between(self, t: float) -> float:
        """The value after the fraction t of the way, 0 <= t < 1."""
        raise NotImplementedError

    def knots(self) -> tuple[int, ...]:
        return (0, int(self.steps))


class LinearSchedule(Ramp):
    """linear(start, end, steps)"""

    def between(self, t: float) -> float:
        return self.start + (self.end - self.start) * t


class CosineSchedule(Ramp):
    """cosine(start, end, steps): end + (start - end) * (1 + cos(pi t)) / 2"""

    def between(self, t: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * t)) / 2


class ExponentialSchedule(Ramp):
    """exponential(start, end, steps): start * (end / start) ** t"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start * self.end <= 0:
            raise InvalidValue("start and end must have the same sign and not be 0")

    def between(self, t: float) -> float:
        return self.start * (self.end / self.start) ** t


class PiecewiseSchedule:
    """piecewise(v0, step1, v1, step2, v2, ...): v1 from step1 on, v2 from step2 on, ..."""

    def __init__(self, first: float, *pairs: float):
        if len(pairs) % 2:
            raise InvalidValue("needs a value after each step: v0, step1, v1, step2, v2, ...")
        self.values = (first, *pairs[1::2])
        self.starts = (0.0, *pairs[0::2])
        if any(start != int(start) for start in self.starts):
            raise InvalidValue("steps must be integers")
        if any(b <= a for a, b in zip(self.starts, self.starts[1:], strict=False)):
            raise InvalidValue("steps must be above 0 and increase")

    def __call__(self, step: int) -> float:
        return self.values[max(sum(start <= step for start in self.starts) - 1, 0)]

    def knots(self) -> tuple[int, ...]:
        return tuple(int(start) for start in self.starts)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": ConstantSchedule,
    "linear": LinearSchedule,
    "cosine": CosineSchedule,
    "exponential": ExponentialSchedule,
    "piecewise": PiecewiseSchedule,
}
ENTRY = re.compile(r"\s*([\w.]+)\s*=\s*(\w+)\s*\((.*)\)\s*")


def parse_schedule(text: str) -> Schedule:
    """The schedule that a text such as "linear(0, 0.01, 1000)" describes. Raises InvalidValue."""
    return _parse_entry(f"_ = {text}")[1]


def _parse_entry(entry: str) -> tuple[str, Schedule]:
    match = ENTRY.fullmatch(entry)
    if match is None:
        raise InvalidValue("must read like path.of.a.scalar = linear(0, 0.01, 1000)")
    path, name, arguments = match.groups()
    if name not in SCHEDULES:
        raise InvalidValue(f"no schedule {name!r}; {choices(name, SCHEDULES)}")
    kind = SCHEDULES[name]
    try:
        numbers = [float(number) for number in arguments.split(",") if arguments.strip()]
    except ValueError:
        raise InvalidValue(f"{name} takes numbers, not {arguments!r}") from None
    if not all(map(math.isfinite, numbers)):
        raise InvalidValue(f"{name} takes finite numbers, not {arguments!r}")
    expected = len(dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None
    if not numbers or (expected is not None and len(numbers) != expected):
        usage = (kind.__doc__ or "").split(":")[0]
        raise InvalidValue(
            f"{name} takes other numbers than {arguments.strip() or 'none'}: {usage}"
        )
    return path, kind(*numbers)


def schedulable_values(config: object) -> dict[str, float]:
    """Every scalar of a config that may follow a schedule, by dotted path, and its value there."""
    return {path: value for path, setting, value in leaves(config) if setting.schedulable}


def parse_schedules(config: HasSchedules) -> dict[str, Schedule]:
    """The schedules of ``config.schedules`` by the path of their scalar. Raises ConfigError."""
    found, rules = _read_schedules(config)
    if rules:
        raise ConfigError([Problem("schedules", config.schedules, rule) for rule in rules])
    return found


def schedule_rules(config: HasSchedules) -> Iterator[Rule]:
    """The rules that ``config.schedules`` breaks, for the ``check`` of the class that has it."""
    for rule in _read_schedules(config)[1]:
        yield "schedules", rule


def _read_schedules(config: HasSchedules) -> tuple[dict[str, Schedule], list[str]]:
    known = schedulable_values(config)
    found: dict[str, Schedule] = {}
    rules = []
    for entry in config.schedules:
        try:
            path, schedule = _parse_entry(entry)
            if path not in known:
                raise InvalidValue(_not_schedulable(config, path, known))
            if path in found:
                raise InvalidValue(f"{path} has a schedule already")
            _check_values(config, path, schedule)
            found[path] = schedule
        except InvalidValue as invalid:
            rules.append(f"{entry!r}: {invalid}")
    return found, rules


def _not_schedulable(config: object, path: str, known: Mapping[str, float]) -> str:
    exists = any(path == leaf for leaf, _, _ in leaves(config))
    message = f"{path} cannot follow a schedule" if exists else f"there is no {path}"
    match = nearest_path(path, known)
    return f"{message}; " + (
        f"did you mean {match}?" if match else f"those that can: {', '.join(known)}"
    )


def _check_values(config: Any, path: str, schedule: Schedule) -> None:
    """The values of the schedule must obey the rules for a constant value of the scalar."""
    owner_path, _, name = path.rpartition(".")
    owner = value_at(config, owner_path) if owner_path else config
    if owner is config or not hasattr(owner, "check"):
        return
    for step in schedule.knots():
        value = schedule(step)
        for broken, rule in dataclasses.replace(owner, **{name: value}).check():
            if broken == name:
                raise InvalidValue(f"{value:g} at step {step} {rule}")


class Schedules:
    """The values of the schedulable scalars of a config at each step; reads the texts once.

    scheduled: the paths that follow a schedule; the others keep the config's value. Those that are
    0 throughout are left out: what they would multiply (noise, a loss) is then not computed.
    """

    def __init__(self, config: HasSchedules):
        schedules = parse_schedules(config)
        self.scheduled = frozenset(schedules)
        self._constant = {
            path: np.float32(value)
            for path, value in schedulable_values(config).items()
            if path not in schedules and value != 0
        }
        self._schedules = schedules

    def __call__(self, step: int) -> dict[str, np.float32]:
        moving = {path: np.float32(at(step)) for path, at in self._schedules.items()}
        return self._constant | moving


def scalars_at(config: HasSchedules, step: int) -> dict[str, np.float32]:
    """`Schedules` at one step; a loop makes one of these instead."""
    return Schedules(config)(step)


def bind(config: T, values: Mapping[str, object], prefix: str = "") -> T:
    """A copy of a config with `values` in place of its schedulable scalars.

    config: the dataclass that stands at the path `prefix` of the whole config. values: by path in
    the whole config; may be traced. Paths outside of `config` and scalars without a value are
    passed over. A bound config with traced values must not be hashed or compared.
    """
    changed: dict[str, object] = {}
    for name, setting in settings(type(config)).items():
        path, old = join(prefix, name), getattr(config, name)
        if setting.subtree:
            new = bind(old, values, path)
            changed |= {} if new is old else {name: new}
        elif setting.schedulable and path in values:
            changed[name] = values[path]
    if not changed:
        return config
    bound = copy.copy(config)
    for name, value in changed.items():
        # Set past __init__, where a checker of annotations would refuse a traced value as a float.
        object.__setattr__(bound, name, value)
    return bound
