"""From a table of results to verdicts."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.card import NULL, NULL_SEEDS, Claim, Comparison
from moe_jax.sweeps.statistics import Interval, cautious, paired

Record = Mapping[str, Any]  # "arm", "seed", and metrics by name


class Verdict(enum.StrEnum):
    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Finding:
    """What a test gave. gain: its mean over seeds and 95 % interval, in the test's unit."""

    test: Comparison
    gain: Interval
    verdict: Verdict


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


def judge(claim: Claim, records: Sequence[Record]) -> Judgement:
    """The verdict on a claim from the runs of its card."""
    return Judgement(
        claim,
        tuple(find(test, records) for test in claim.tests),
        tuple(find(test, records, null=True) for test in claim.tests),
    )


def find(test: Comparison, records: Sequence[Record], null: bool = False) -> Finding:
    """The gain of the treatment over the baseline. null: of the baseline with other seeds over
    the baseline, which is nothing but noise."""
    baseline = _by_seed(records, test.baseline, test.of_baseline)
    if null:
        other = _by_seed(records, NULL + test.baseline, test.of_baseline)
        treatment = {seed - NULL_SEEDS: value for seed, value in other.items()}
    else:
        treatment = _by_seed(records, test.treatment, test.metric)
    sign = -1.0 if test.direction == "lower" else 1.0
    if test.unit == "log ratio":
        treatment, baseline = (
            {seed: math.log(max(value, 1e-12)) for seed, value in values.items()}
            for values in (treatment, baseline)
        )
    gains = [sign * gap for gap in paired(treatment, baseline)]
    if not gains:
        return Finding(test, Interval(math.nan, -math.inf, math.inf, 0), Verdict.UNDECIDED)
    gain = cautious(gains)
    return Finding(test, gain, decide(gain, test.band))


def decide(gain: Interval, band: float) -> Verdict:
    """Whether the gain is above the band, below it, or neither for sure."""
    if gain.low > band:
        return Verdict.HOLDS
    return Verdict.DOES_NOT_HOLD if gain.high < band else Verdict.UNDECIDED


def together(verdicts) -> Verdict:
    """All must hold; one that does not is enough."""
    found = list(verdicts)
    if Verdict.DOES_NOT_HOLD in found:
        return Verdict.DOES_NOT_HOLD
    return Verdict.UNDECIDED if Verdict.UNDECIDED in found else Verdict.HOLDS


def _by_seed(records: Sequence[Record], arm: str, metric: str) -> dict[int, float]:
    """nan values are left out: such a run says nothing, but the others do."""
    return {
        record["seed"]: record[metric]
        for record in records
        if record["arm"] == arm and math.isfinite(record.get(metric, math.nan))
    }
