"""The judge on drawn tables: how often it errs, and what it must not pass over."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.card import NULL, NULL_SEEDS, Claim, Comparison
from experiments.judge import Verdict, find, judge, level_among
from moe_jax.config.errors import UserError

TEST = Comparison(metric="m", treatment="b", baseline="a")
RATIO = dataclasses.replace(TEST, unit="log ratio")
TABLES = 2_000
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def claim(*tests: Comparison) -> Claim:
    return Claim(name="c", text="", published="", source="", tests=tests)


def runs(**arms) -> list[dict]:
    """Runs of seeds 0, 1, ... with these values of "m"."""
    return [
        {"arm": arm, "seed": seed, "m": float(value)}
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]


def share_that_holds(draw: Draw, n: int, level: float = 0.95) -> float:
    random = np.random.default_rng(n)
    count = 0
    for _ in range(TABLES):
        a, b = draw(random, n)
        finding = dataclasses.replace(find(TEST, runs(a=a, b=b)), level=level)
        count += finding.verdict == Verdict.HOLDS
    return count / TABLES


def equal(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two arms without a difference, their seeds in common."""
    seed = random.normal(0, 1, n)
    return seed + random.normal(0, 0.1, n), seed + random.normal(0, 0.1, n)


def diverging(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The treatment diverges where it is bad."""
    a, b = equal(random, n)
    return a, np.where(b > a + 0.05, np.nan, b)


def tied(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    return random.integers(0, 3, n).astype(float), random.integers(0, 3, n).astype(float)


def skewed_values(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    return random.lognormal(0, 1.5, n), random.lognormal(0, 1.5, n)


def skewed_gains(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Gains of mean 0 that are mostly small and positive and seldom large and negative."""
    return 1 - random.exponential(1, n), np.zeros(n)


@pytest.mark.parametrize("n", [4, 8])
def test_of_null_tables_as_many_hold_as_the_level_says(n: int):
    assert abs(share_that_holds(equal, n) - 0.025) <= 0.01


@pytest.mark.parametrize("n", [4, 8])
@pytest.mark.parametrize("draw", [diverging, tied, skewed_values])
def test_no_more_hold_where_runs_diverge_tie_or_are_skewed(draw: Draw, n: int):
    assert share_that_holds(draw, n) <= 0.035


@pytest.mark.parametrize("n", [4, 8])
def test_docs_say_how_often_skewed_gains_deceive(n: int):
    found = re.search(r"(\d+) to (\d+) % of such tables", Path("docs/cards.md").read_text("utf-8"))
    assert found is not None
    low, high = (int(percent) / 100 for percent in found.groups())
    assert low - 0.01 <= share_that_holds(skewed_gains, n) <= high + 0.01


def test_a_page_of_false_claims_seldom_says_that_one_holds():
    alone = share_that_holds(equal, 4, level_among(17))
    assert 1 - (1 - alone) ** 17 <= 0.05
    assert level_among(1) == 0.95 and level_among(17) == pytest.approx(1 - 0.05 / 17)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_diverged_runs_count_against_the_claim(bad: float):
    good = [1.0, 1.1, 0.9, 1.2, 1.0, 1.3, 0.8, 1.1]
    better = [0.49, 0.61] + [bad] * 6
    found = judge(claim(TEST), runs(a=good, b=better))
    assert found.verdict == Verdict.UNDECIDED and found.n == 2
    assert found.findings[0].problems == ("no finite value of seed 2, 3, 4, 5, 6, 7",)
    whole = judge(claim(TEST), runs(a=good, b=[value - 0.5 for value in good[:-1]] + [0.7]))
    assert whole.verdict == Verdict.HOLDS and whole.n == 8


def test_missing_runs_leave_a_claim_undecided():
    table = runs(a=[1.0, 1.1, 0.9, 1.2], b=[0.5, 0.61, 0.39, 0.7])
    assert judge(claim(TEST), table, range(4)).verdict == Verdict.HOLDS
    assert judge(claim(TEST), table, range(5)).verdict == Verdict.UNDECIDED
    assert judge(claim(TEST), table[:-1]).verdict == Verdict.UNDECIDED  # a has the seed
    without = [{"arm": "b", "seed": 3}, *table[:-1]]
    assert judge(claim(TEST), without).findings[0].problems == ("no finite value of seed 3",)


@pytest.mark.parametrize("worst", [0.0, -1.0])
def test_values_without_a_ratio_are_not_clipped(worst: float):
    found = find(RATIO, runs(a=[5.0, 5.1, 5.3], b=[1.0, worst, 1.1]))
    assert found.verdict == Verdict.UNDECIDED
    assert found.problems == ("no ratio (a value is not above 0) of seed 1",)
    assert len(found.gains) == 2


@pytest.mark.parametrize("n", [2, 4])
def test_equal_gains_say_nothing_of_their_spread(n: int):
    a = [0.3 + 0.1 * number for number in range(n)]  # the gains differ in their last bits
    found = find(TEST, runs(a=a, b=[value - 0.1 for value in a]))
    assert found.verdict == Verdict.UNDECIDED
    assert "all gains are equal" in found.problems[0]


def test_without_tests_nothing_holds():
    found = judge(claim(), runs(a=[1.0], b=[2.0]))
    assert found.verdict == found.null_verdict == found.among(3) == Verdict.UNDECIDED
    assert found.n == 0


def test_a_second_run_of_a_seed_is_refused():
    table = runs(a=[1.0, 1.1], b=[0.5, 0.6])
    with pytest.raises(UserError, match="two runs of arm 'b' have seed 1"):
        judge(claim(TEST), [*table, {"arm": "b", "seed": 1, "m": 0.1}])


def test_the_null_too_is_undecided_where_a_run_is_missing():
    table = runs(a=[1.0, 1.1, 0.9], b=[0.5, 0.7, 0.3])
    others = [{"arm": NULL + "a", "seed": s + NULL_SEEDS, "m": 3.0 + s} for s in range(2)]
    found = judge(claim(TEST), table + others)
    assert found.null_verdict == Verdict.UNDECIDED
    assert found.null[0].problems == ("no run of seed 2",)
