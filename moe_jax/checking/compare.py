"""Holds the trial of a variant to that of the reference, and finds which factor is to blame.

Sums in another order differ by rounding, about 1e-7 relative in float32, and each step adds to it.
Hence what is allowed, of || difference || / || reference ||:
  counts (assignments, drops, overflow)    none
  losses, gradient norm, sums of routing   tolerance
  gradients by parameter, router state     10 x tolerance: a gradient is a small sum of large terms
  final parameters                         100 x tolerance, relative to the way they have moved;
                                           only elements whose gradient is more than its rounding,
                                           of which AdamW and Lion make a whole step
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moe_jax.checking.trial import StepRecord, Trial

GRADIENT, PARAMETER = 10, 100
# A gradient that is negligible beside the others is compared relative to their norm: that of a
# router without a task gradient is rounding alone.
NEGLIGIBLE = 1e-3

# What || difference || / || gradient || may be in bfloat16, by part of the parameter's name: about
# 3 x the most that was found over all routers (docs/check.md).
ROUNDING = {"router": 0.25, "experts": 0.12, "embedding": 0.1, "head": 0.05, "": 0.2}
# A gradient below so much of the whole is held to that.
SMALL = 1e-2


@dataclass(frozen=True)
class Difference:
    """How far a quantity is from the reference, relative; inf for counts that differ."""

    quantity: str
    size: float
    allowed: float

    @property
    def excess(self) -> float:
        """Above 1: more than allowed."""
        return self.size / self.allowed if math.isfinite(self.size) else math.inf


def compare(trial: Trial, reference: Trial, tolerance: float) -> list[Difference]:
    """All differences, in the order in which a run meets them. NaN counts as infinitely far."""
    found = []
    for number, (step, expected) in enumerate(zip(trial.steps, reference.steps, strict=True), 1):
        for quantity, size, factor in _of_step(step, expected):
            found.append(Difference(f"{quantity}, step {number}", size, factor * tolerance))
    for name, after in reference.params.items():
        counted = _counted(name, trial, reference, tolerance)
        moved = _norm((after - reference.start[name])[counted])
        size = _relative(trial.params[name][counted], after[counted], moved)
        found.append(Difference(f"parameter {name}", size, PARAMETER * tolerance))
    return found


def _counted(name: str, trial: Trial, reference: Trial, tolerance: float) -> np.ndarray:
    """Which elements of a parameter are compared: those whose gradient was, in every step, larger
    than what is allowed to it, shared evenly among the elements. Of a smaller one AdamW and Lion
    make a whole step in a direction that rounding decides: it counts only if it is further off
    than such a step there and back."""
    after = reference.params[name]
    decided = np.ones(after.shape, bool)
    for step in reference.steps:
        gradient = step.gradients[name]
        allowed = GRADIENT * tolerance * max(_norm(gradient), _least(step))
        decided &= np.abs(gradient) > allowed / math.sqrt(gradient.size)
    furthest = 2 * np.abs(after - reference.start[name]).max(initial=0)
    return decided | ~(np.abs(trial.params[name] - after) <= furthest)  # NaN is far off


def _least(step: StepRecord) -> float:
    """The norm of a gradient below which it is nothing beside the others."""
    return NEGLIGIBLE * math.hypot(*map(_norm, step.gradients.values()))


def _of_step(step: StepRecord, expected: StepRecord) -> Iterator[tuple[str, float, int]]:
    """(quantity, relative difference, how many times the tolerance)."""
    for name, count in expected.counts.items():
        if not np.array_equal(step.counts[name], count):
            yield f"count of {name}", math.inf, 1
    for name, value in expected.numbers.items():
        yield name, _relative(np.asarray(step.numbers[name]), np.asarray(value)), 1
    for name, total in expected.sums.items():
        yield f"sum of {name}", _relative(step.sums[name], total), 1
    least = _least(expected)
    for name, gradient in expected.gradients.items():
        size = _relative(step.gradients[name], gradient, max(_norm(gradient), least))
        yield f"gradient of {name}", size, GRADIENT
    for name, state in expected.router_state.items():
        yield f"router state {name}", _relative(step.router_state[name], state), GRADIENT


def compare_rounding(trial: Trial, reference: Trial) -> list[Difference]:
    """The gradients of a narrow compute type against float32, by parameter, of one step on many
    tokens. Only these: which experts a token takes is discrete, and a few take others."""
    found = []
    step, expected = trial.steps[0], reference.steps[0]
    least = SMALL * math.hypot(*map(_norm, expected.gradients.values()))
    for name, gradient in expected.gradients.items():
        scale = max(_norm(gradient), least)
        size = _relative(step.gradients[name], gradient, scale)
        found.append(Difference(f"gradient of {name} in bfloat16", size, rounding_allowed(name)))
    return found


def rounding_allowed(name: str) -> float:
    """What the gradient of a parameter may be off in bfloat16, by the kind of the parameter."""
    parts = name.split("/")
    return next((value for part, value in ROUNDING.items() if part in parts), ROUNDING[""])


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64).ravel()))


def _relative(x: np.ndarray, expected: np.ndarray, scale: float | None = None) -> float:
    """|| x - expected || / scale, which is || expected || by default; 0 where both are 0."""
    distance = _norm(np.asarray(x, np.float64) - np.asarray(expected, np.float64))
    if distance == 0:
        return 0.0
    scale = _norm(expected) if scale is None else scale
    size = distance / scale if scale > 0 else math.inf
    return size if math.isfinite(size) else math.inf


def blame(outcomes: Sequence[tuple[str, frozenset[str], bool]]) -> list[str]:
    """Which factors explain the variants that differ, in words; [] where none differs.

    outcomes: (name, factors, whether equal) of each variant. A factor that some equal variant has
    is not to blame alone. What is left of a variant that differs accuses one factor, or several
    that always came together; a variant of which nothing is left differs by a combination.
    """
    innocent = set().union(*(factors for _, factors, equal in outcomes if equal))
    accused = {name: factors - innocent for name, factors, equal in outcomes if not equal}
    messages: list[str] = []
    guilty = {next(iter(factors)) for factors in accused.values() if len(factors) == 1}
    open_cases = {name: f for name, f in accused.items() if f and not f & guilty}
    messages += [_message(factor, outcomes) for factor in sorted(guilty)]
    while open_cases:
        counts: dict[str, int] = {}
        for factors in open_cases.values():
            for factor in factors:
                counts[factor] = counts.get(factor, 0) + 1
        most = max(counts.values())
        together = sorted(factor for factor, count in counts.items() if count == most)
        messages.append(" or ".join(_message(factor, outcomes) for factor in together))
        open_cases = {name: f for name, f in open_cases.items() if not f & set(together)}
    mixed = [name for name, factors in accused.items() if not factors]
    if mixed:
        messages.append(f"no factor alone but a combination: {min(mixed, key=len)}")
    return messages


def _message(factor: str, outcomes: Sequence[tuple[str, frozenset[str], bool]]) -> str:
    having = [equal for _, factors, equal in outcomes if factor in factors]
    return f"{factor} ({having.count(False)} of {len(having)} variants with it differ)"


def check_finite(reference: Trial) -> str | None:
    """What is wrong with the reference itself, None if nothing."""
    for number, step in enumerate(reference.steps, 1):
        for name, value in step.numbers.items():
            if not math.isfinite(value):
                return f"{name} of the reference is {value} in step {number}"
    return None
