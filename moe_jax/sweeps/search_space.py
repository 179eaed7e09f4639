"""The space of a search: for each setting a range or a choice.

optimizer.learning_rate = log(1e-3, 3e-2); moe.router.k = 1, 2, 4;
moe.expert_dim = int(64, 512, 64)
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import JsonObject
from moe_jax.sweeps.space import path_of, split, unquoted

FORMS = ("log", "uniform", "int")
FORM = re.compile(rf"({'|'.join(FORMS)})\((.*)\)")


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included. log: by their logarithm; step: whole numbers that
    far apart from low; None: any number."""

    low: float
    high: float
    log: bool = False
    step: int | None = None

    @property
    def first(self) -> float | int:
        return self.low if self.step is None else int(self.low)


@dataclass(frozen=True)
class Choice:
    """One of some values, as texts."""

    values: tuple[str, ...]

    @property
    def first(self) -> str:
        return self.values[0]


Space = dict[str, Range | Choice]


def parse_space(text: str) -> Space:
    """The space of a text: PATH = log(LOW, HIGH), uniform(LOW, HIGH), int(LOW, HIGH[, STEP]) or
    VALUE, VALUE, ...; parts with ; between them. UserError for a text that is no space."""
    space: Space = {}
    for part in filter(None, (part.strip() for part in split(text, ";"))):
        left, equals, right = (piece.strip() for piece in part.partition("="))
        if not equals or not right:
            raise UserError(f"--space: {part!r} is not PATH=log(LOW, HIGH) or PATH=VALUE,VALUE")
        path = path_of(left, "--space")
        if path in space:
            raise UserError(f"--space: {path} stands there twice")
        form = FORM.fullmatch(right)
        space[path] = _range(part, form[1], form[2]) if form else _choice(part, right)
    if not space:
        raise UserError("--space is empty")
    return space


def _choice(part: str, text: str) -> Choice:
    values = tuple(unquoted(value.strip()) for value in split(text, ","))
    if "" in values or len(set(values)) < len(values) or len(values) < 2:
        raise UserError(f"--space: {part!r} needs two different values at least")
    return Choice(values)


def _range(part: str, form: str, text: str) -> Range:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError as error:
        raise UserError(f"--space: {part!r} has no numbers in its brackets") from error
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"--space: {part!r}: bounds are finite numbers")
    whole = all(number == int(number) for number in numbers)
    if len(numbers) not in ((2, 3) if form == "int" else (2,)) or (form == "int" and not whole):
        raise UserError(f"--space: {part!r}: write log(LOW, HIGH) or int(LOW, HIGH, STEP)")
    low, high = numbers[:2]
    if not low < high or (form == "log" and low <= 0):
        raise UserError(f"--space: {part!r}: the bounds must rise, and be above 0 for log")
    step = int(numbers[2]) if len(numbers) == 3 else 1
    if form == "int" and (step < 1 or (high - low) % step):
        raise UserError(f"--space: {part!r}: steps of {step} do not lead from {low:g} to {high:g}")
    return Range(low, high, log=form == "log", step=step if form == "int" else None)


def to_json(space: Space) -> JsonObject:
    """The space as a part of a search's question."""
    return {
        path: list(domain.values) if isinstance(domain, Choice) else asdict(domain)
        for path, domain in space.items()
    }


def distributions(space: Space) -> dict[str, object]:
    """As Optuna's distributions."""
    from optuna import distributions as d

    found: dict[str, object] = {}
    for path, domain in space.items():
        if isinstance(domain, Choice):
            found[path] = d.CategoricalDistribution(domain.values)
        elif domain.step is not None:
            found[path] = d.IntDistribution(int(domain.low), int(domain.high), step=domain.step)
        else:
            found[path] = d.FloatDistribution(domain.low, domain.high, log=domain.log)
    return found
