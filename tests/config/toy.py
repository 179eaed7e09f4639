"""A small config with everything that a config may hold, for the tests of the machinery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from moe_jax.config.fields import Rule, at_least, kind, schedulable
from moe_jax.config.schedules import schedule_rules


class Chooser(Protocol):
    @property
    def causal(self) -> bool: ...

    def choose(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Greedy:
    k: int = 2
    noise: float = schedulable(0.5)
    causal: bool = True

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "k")
        yield from at_least(self, 0, "noise")

    def choose(self) -> int:
        return self.k


@dataclass(frozen=True, kw_only=True)
class Lazy:
    """Has a field of Greedy's name with another default, and a choice of its own."""

    noise: float = schedulable(0.25)
    order: Literal["first", "last"] = "first"
    causal: bool = False

    def choose(self) -> int:
        return 0


INNER = {"greedy": Greedy, "lazy": Lazy}


@dataclass(frozen=True, kw_only=True)
class Nested:
    weight: float = schedulable(1.0)
    inner: Chooser = kind(INNER, lambda: Greedy(k=7))
    causal: bool = True

    def choose(self) -> int:
        return 1


CHOOSERS = {**INNER, "nested": Nested}


@dataclass(frozen=True, kw_only=True)
class Layer:
    size: int = 4
    chooser: Chooser = kind(CHOOSERS, Greedy)
    capacity: float | None = None
    bias: bool = False

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "size", "capacity")


@dataclass(frozen=True, kw_only=True)
class Toy:
    name: str = "toy"
    note: str | None = None
    steps: int = 10
    rate: float = 1e-3
    window: tuple[int, ...] = (1, 2)
    pair: tuple[str, float] = ("a", 0.5)
    schedules: tuple[str, ...] = ()
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = None
    layer: Layer = field(default_factory=lambda: Layer(size=16))

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "steps")
        yield from schedule_rules(self)
        if self.limit is not None and self.layer.size > self.limit:
            yield "layer.size", f"must be at most limit = {self.limit}"


TABLE = "no class"


@dataclass(frozen=True, kw_only=True)
class Outside:
    """A chooser from outside the package: kind="tests.config.toy:Outside"."""

    temperature: float = 1.0
    causal: bool = True

    def choose(self) -> int:
        return 2


@dataclass(kw_only=True)
class NotFrozen:
    causal: bool = True

    def choose(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class NeedsSize:
    size: int
    causal: bool = True

    def choose(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class NoChooser:
    size: int = 1


class Plain:
    pass
