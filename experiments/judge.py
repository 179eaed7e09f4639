"""From a table of results to verdicts.

A verdict counts every seed that was asked for. A run that is missing, that diverged, or whose ratio
does not exist leaves the claim undecided: dropping its pair would judge the claim by the seeds that
went well.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.card import NULL, NULL_SEEDS, Claim, Comparison
from moe_jax.config.errors import UserError
from moe_jax.sweeps.statistics import LEVEL, Interval, cautious

Record = Mapping[str, Any]  # "arm", "seed", and metrics by name; NaN, inf or None: it diverged

ROUNDING = 1e-9  # of the values: gains that differ by less are equal


class Verdict(enum.StrEnum):
    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Finding:
    """What a test gave. gains: in the test's unit, of the seeds that have both values; gain: their
    mean and interval; problems: why it is undecided whatever the interval says."""

    test: Comparison
    gains: tuple[float, ...]
    problems: tuple[str, ...]
    level: float = LEVEL

    @functools.cached_property
    def gain(self) -> Interval:
        if not self.gains:
            return Interval(math.nan, -math.inf, math.inf, 0)
        return cautious(self.gains, self.level)

    @property
    def verdict(self) -> Verdict:
        return Verdict.UNDECIDED if self.problems else decide(self.gain, self.test.band)


@dataclass(frozen=True)
class Judgement:
    """What became of a claim: its tests, and the same tests where the treatment is the baseline
    with other seeds, which must not make it hold."""

    claim: Claim
    findings: tuple[Finding, ...]
    null: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        return together(finding.verdict for finding in self.findings)

    @property
    def null_verdict(self) -> Verdict:
        return together(finding.verdict for finding in self.null)

    @property
    def n(self) -> int:
        """Pairs of runs that the verdict rests on, of the test that has the fewest."""
        return min((len(finding.gains) for finding in self.findings), default=0)

    def among(self, claims: int) -> Verdict:
        """The verdict where `claims` are judged on one page, by intervals of `level_among`."""
        level = level_among(claims)
        return together(replace(finding, level=level).verdict for finding in self.findings)


def level_among(claims: int) -> float:
    """Bonferroni's: of pages with so many claims, none of them true, 2.5 % at the most say that
    one holds, as a single claim does at LEVEL."""
    return 1 - (1 - LEVEL) / max(claims, 1)


def judge(claim: Claim, records: Sequence[Record], seeds: Iterable[int] = ()) -> Judgement:
    """The verdict on a claim from the runs of its card. seeds: those that were asked for; seeds of
    any run of a test's two arms count as asked for too. UserError for two runs of one seed."""
    asked = tuple(seeds)
    return Judgement(
        claim,
        tuple(find(test, records, seeds=asked) for test in claim.tests),
        tuple(find(test, records, null=True, seeds=asked) for test in claim.tests),
    )


def find(
    test: Comparison, records: Sequence[Record], null: bool = False, seeds: Iterable[int] = ()
) -> Finding:
    """The gain of the treatment over the baseline. null: of the baseline with other seeds over
    the baseline, which is nothing but noise."""
    baseline = _by_seed(records, test.baseline, test.of_baseline)
    if null:
        other = _by_seed(records, NULL + test.baseline, test.of_baseline)
        treatment = {seed - NULL_SEEDS: value for seed, value in other.items()}
    else:
        treatment = _by_seed(records, test.treatment, test.metric)
    sign = -1.0 if test.direction == "lower" else 1.0
    unit = math.log if test.unit == "log ratio" else float
    lost: dict[str, list[int]] = {}
    gains, size = [], 0.0
    for seed in sorted({*seeds, *treatment, *baseline}):
        pair = treatment.get(seed), baseline.get(seed)
        if (why := _unusable(pair, test.unit)) is not None:
            lost.setdefault(why, []).append(seed)
            continue
        a, b = map(unit, pair)
        gains.append(sign * (a - b))
        size = max(size, abs(a), abs(b))
    problems = [f"{why} of seed {', '.join(map(str, those))}" for why, those in lost.items()]
    if len(gains) > 1 and max(gains) - min(gains) <= ROUNDING * size:
        problems.append("all gains are equal, which says nothing of their spread")
    return Finding(test, tuple(gains), tuple(problems))


def _unusable(pair: Sequence[float | None], unit: str) -> str | None:
    """Why two runs of a seed give no gain, None where they do."""
    if None in pair:
        return "no run"
    if not all(map(math.isfinite, pair)):
        return "no finite value"
    if unit == "log ratio" and min(pair) <= 0:
        return "no ratio (a value is not above 0)"
    return None


def decide(gain: Interval, band: float) -> Verdict:
    """Whether the gain is above the band, below it, or neither for sure."""
    if gain.low > band:
        return Verdict.HOLDS
    return Verdict.DOES_NOT_HOLD if gain.high < band else Verdict.UNDECIDED


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """All must hold; one that does not is enough. Of no verdicts nothing is known."""
    found = list(verdicts)
    if Verdict.DOES_NOT_HOLD in found:
        return Verdict.DOES_NOT_HOLD
    return Verdict.UNDECIDED if Verdict.UNDECIDED in found or not found else Verdict.HOLDS


def _by_seed(records: Sequence[Record], arm: str, metric: str) -> dict[int, float]:
    """The metric of each run of an arm, nan where it has none. UserError for a second run of a
    seed: which of them counts is nobody's to choose afterwards."""
    found: dict[int, float] = {}
    for record in records:
        if record["arm"] != arm:
            continue
        if record["seed"] in found:
            raise UserError(f"two runs of arm {arm!r} have seed {record['seed']}")
        value = record.get(metric)
        found[record["seed"]] = math.nan if value is None else float(value)
    return found
