"""Paper cards: their points, their verdicts on tables where the answer is known, their pages."""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from experiments import pages, record
from experiments.card import NULL, NULL_SEEDS, Comparison, LoadedCard, load_card, names
from experiments.judge import Verdict, decide, find, judge, together
from experiments.run import plans
from moe_jax.config.errors import UserError
from moe_jax.sweeps.statistics import Interval
from tests.drawn import some

CARDS = {name: load_card(name) for name in names()}
CLAIMS = [
    pytest.param(card, claim, id=f"{name}: {claim.name}")
    for name, card in CARDS.items()
    for claim in card.claims
]


def table(card: LoadedCard, gains: dict[Comparison, float], noise: float = 1e-4) -> list[dict]:
    """Runs of every arm such that each test's gain is the one given, but for a little noise."""
    random = np.random.default_rng(0)
    seeds = [card.card.first_seed + n for n in range(4)]
    runs = {}
    for test, gain in gains.items():
        for number, seed in enumerate(seeds):
            level = 1.0 + 0.01 * number

            def put(arm: str, seed: int, metric: str, value: float) -> None:
                runs.setdefault((arm, seed), {"arm": arm, "seed": seed})[metric] = value

            signed = gain if test.direction == "higher" else -gain
            better = level * math.exp(signed) if test.unit == "log ratio" else level + signed
            put(test.baseline, seed, test.of_baseline, level + noise * random.normal())
            put(test.treatment, seed, test.metric, better + noise * random.normal())
            null = level + noise * random.normal()
            put(NULL + test.baseline, seed + NULL_SEEDS, test.of_baseline, null)
    return list(runs.values())


@pytest.mark.parametrize(("card", "claim"), CLAIMS)
def test_a_claim_holds_where_it_is_true_and_never_between_equal_arms(card: LoadedCard, claim):
    for number in range(1, len(claim.tests) + 1):
        gains = {test: test.band + 0.05 for test in claim.tests[:number]}
        assert find(claim.tests[number - 1], table(card, gains)).verdict == Verdict.HOLDS
    found = judge(claim, table(card, {test: test.band + 0.05 for test in claim.tests}))
    assert found.verdict == Verdict.HOLDS
    assert found.null_verdict != Verdict.HOLDS


@pytest.mark.parametrize(("card", "claim"), CLAIMS)
def test_a_claim_that_is_false_is_said_to_be(card: LoadedCard, claim):
    for wrong in claim.tests:  # one false test is enough
        gains = {test: test.band + (-0.05 if test is wrong else 0.05) for test in claim.tests}
        assert judge(claim, table(card, gains)).verdict == Verdict.DOES_NOT_HOLD


@pytest.mark.parametrize(("card", "claim"), CLAIMS)
def test_noise_leaves_a_claim_undecided(card: LoadedCard, claim):
    gains = {test: test.band for test in claim.tests}
    assert judge(claim, table(card, gains, noise=0.02)).verdict == Verdict.UNDECIDED
    assert judge(claim, []).verdict == Verdict.UNDECIDED
    one_seed = [
        run
        for run in table(card, {test: test.band + 1 for test in claim.tests})
        if run["seed"] % NULL_SEEDS == card.card.first_seed
    ]
    assert judge(claim, one_seed).verdict == Verdict.UNDECIDED


def test_the_gain_is_signed_paired_and_in_its_unit():
    runs = [
        {"arm": "a", "seed": 1, "m": 2.0},
        {"arm": "a", "seed": 2, "m": 5.0},
        {"arm": "b", "seed": 2, "m": 4.0},
        {"arm": "b", "seed": 1, "m": 1.5},
        {"arm": "b", "seed": 3, "m": 99.0},
        {"arm": "b", "seed": 4, "m": math.nan},
    ]
    lower = Comparison(metric="m", treatment="b", baseline="a")
    assert find(lower, runs).gain.mean == pytest.approx(0.75)
    higher = dataclasses.replace(lower, direction="higher", unit="log ratio")
    expected = (math.log(1.5 / 2) + math.log(4 / 5)) / 2
    assert find(higher, runs).gain.mean == pytest.approx(expected)
    assert find(lower, runs).gain.n == 2
    assert find(lower, runs).problems == ("no run of seed 3, 4",)


def test_verdicts_by_interval():
    assert decide(Interval(1, 0.5, 1.5, 3), 0.4) == Verdict.HOLDS
    assert decide(Interval(1, 0.5, 1.5, 3), 1.6) == Verdict.DOES_NOT_HOLD
    for band in (0.6, 1.0, 1.4):
        assert decide(Interval(1, 0.5, 1.5, 3), band) == Verdict.UNDECIDED
    three = [Verdict.HOLDS, Verdict.UNDECIDED, Verdict.DOES_NOT_HOLD]
    assert [together(three[:n]) for n in (1, 2, 3)] == three
    assert together([]) == Verdict.UNDECIDED


def test_an_unknown_card_is_told():
    with pytest.raises(UserError, match="did you mean loss_free"):
        load_card("los_free")


@pytest.mark.grid
@pytest.mark.parametrize("name", CARDS)
def test_every_point_of_every_scale_is_a_valid_config(name: str):
    card = CARDS[name]
    assert {"tiny", "small"} <= card.card.scales.keys()
    for scale in card.card.scales.values():
        points = card.points(scale)
        assert len({point.name for point in points}) == len(points)
        arms = card.card.arms(points[0].experiment)
        for claim in card.claims:
            for test in claim.tests:
                assert {test.treatment, test.baseline} <= arms.keys()
    tiny = card.points(card.scale("tiny"))
    by_arm = {arm: [p for p in tiny if p.arm == arm] for arm in {p.arm for p in tiny}}
    for arm, points in by_arm.items():
        if not arm.startswith(NULL):
            continue
        for point, twin in zip(points, by_arm[arm.removeprefix(NULL)], strict=True):
            same = dataclasses.replace(twin.experiment, name=point.name, seed=point.seed)
            assert point.experiment == same
            assert point.seed == twin.seed + NULL_SEEDS


PODS = [name for name, card in CARDS.items() if "pod" in card.card.scales]


@pytest.mark.parametrize("name", some(PODS, PODS[:2]))
def test_every_arm_of_a_pod_fits_by_the_estimate(name: str):
    scale = CARDS[name].scale("pod")
    assert scale.topology is not None
    for arm, plan in plans(CARDS[name].points(scale), scale.topology).items():
        assert plan.fits, arm


@pytest.mark.parametrize("name", CARDS)
def test_a_card_tells_its_claim(name: str):
    readme = (CARDS[name].folder / "README.md").read_text("utf-8")
    for word in ("**Claim", "**Published.**", "**Kept.**", "**Scaled down.**", "**Band"):
        assert word in readme
    assert f"python -m experiments.run {name} --scale=tiny" in readme
    assert pages.BEGIN in readme and pages.END in readme


@pytest.mark.grid
def test_the_pages_are_those_of_the_committed_tables():
    for file, content in pages.pages():
        assert file.read_text("utf-8") == content, f"python -m experiments.index writes {file}"


@pytest.mark.parametrize("name", CARDS)
def test_claims_are_those_that_stood_before_the_runs(name: str):
    for kept in record.records(CARDS[name]):
        assert record.changed_claims(CARDS[name], kept) == [], kept["scale"]
        scale = CARDS[name].scale(kept["scale"])
        assert record.asked_seeds(CARDS[name], kept) == CARDS[name].seeds(scale)
        assert len(kept["runs"]) == len(CARDS[name].points(scale))
        assert not any(commit["dirty"] for commit in kept.get("commits", [kept.get("git")]))


def test_a_figure_shows_every_run():
    card = CARDS["loss_free"]
    runs = table(card, {test: 1.0 for claim in card.claims for test in claim.tests})
    svg = ElementTree.fromstring(record.figure(card, {"runs": runs, "scale": "tiny"}))
    shown = [run for run in runs if "moe/max_violation" in run]
    assert len(svg.findall(".//{*}circle")) == len(shown)


def test_the_card_of_the_docs_is_a_card():
    text = Path("docs/cards.md").read_text("utf-8")
    blocks = [
        textwrap.dedent(block)
        for block in re.findall(r"(?:^(?:    .*)?\n)+", text, re.MULTILINE)
        if " import " in block
    ]
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert sum(len(block.strip().splitlines()) for block in blocks) <= 30
    card = LoadedCard("docs", names["CARD"], tuple(names["CLAIMS"]))
    for scale in card.card.scales.values():
        assert {point.arm for point in card.points(scale)} == {
            "coefficient 0",
            "coefficient 0.001",
            NULL + "coefficient 0",
        }
