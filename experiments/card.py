"""A paper card: one claim of a paper as arms, tests with bands fixed beforehand, and a verdict.

A card is a folder of experiments/ with
    README.md    the claim, its published figures, what is kept and what is scaled down
    sweep.py     CARD: arms, scales, what is measured
    verdict.py   CLAIMS: which difference of which metric, in which direction, beyond which band
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from moe_jax.config.errors import UserError
from moe_jax.config.nearest import nearest
from moe_jax.config.overrides import load_config
from moe_jax.notebook import LoadedRun
from moe_jax.sweeps.points import SweepPoint, build_point, plain
from moe_jax.sweeps.space import SEED
from moe_jax.training.experiment import Experiment

HERE = Path(__file__).parent
NULL = "null: "  # an arm again, with other seeds
NULL_SEEDS = 1000  # added to the seeds of a null arm


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A size at which a card is run. seeds: of each arm. overrides: of all arms; topology: of
    moe_jax.plan, where this machine is not enough."""

    config: str
    seeds: int
    overrides: Mapping[str, Any] = field(default_factory=dict)
    topology: str | None = None


@dataclass(frozen=True, kw_only=True)
class Card:
    """A question.

    arms: name -> overrides, for the config of a scale. first_seed: seeds are first_seed, ... (so
    that a card can be run on seeds that its author has not seen). measure: further figures of a
    trained run. shown: metrics of the tables. figure: an SVG of the runs; None: the first of them,
    a row an arm.
    """

    title: str
    arms: Callable[[Experiment], Mapping[str, Mapping[str, Any]]]
    scales: Mapping[str, Scale]
    first_seed: int = 10
    measure: Callable[[LoadedRun], dict[str, float]] | None = None
    shown: Sequence[str] = ("bits_per_byte",)
    figure: Callable[[Sequence[Mapping[str, Any]]], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One comparison, paired by seed.

    gain = baseline - treatment ("lower") or treatment - baseline ("higher"), of `metric`; as a
    difference, or as the logarithm of the ratio. It passes where the gain lies above `band`
    beyond doubt: a band above 0 is the least gain that counts, below 0 the loss that is still
    equal. baseline_metric: where it is another than the treatment's.
    """

    metric: str
    treatment: str
    baseline: str
    direction: Literal["lower", "higher"] = "lower"
    band: float = 0.0
    unit: Literal["difference", "log ratio"] = "difference"
    baseline_metric: str | None = None

    @property
    def of_baseline(self) -> str:
        return self.baseline_metric or self.metric


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says. It holds where all of its tests pass. published: the paper's figures."""

    name: str
    text: str
    published: str
    source: str
    tests: tuple[Comparison, ...]

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Claim:
        """A claim as a record keeps it."""
        tests = tuple(Comparison(**test) for test in tree["tests"])
        return cls(**{**tree, "tests": tests})


@dataclass(frozen=True)
class LoadedCard:
    name: str
    card: Card
    claims: tuple[Claim, ...]

    @property
    def folder(self) -> Path:
        return HERE / self.name

    def arms(self, scale: Scale) -> dict[str, Mapping[str, Any]]:
        """The card's arms, and the baseline of every test again, for other seeds."""
        own = self.card.arms(load_config(scale.config, scale.overrides, Experiment))
        names = dict.fromkeys(test.baseline for claim in self.claims for test in claim.tests)
        return {**own, **{NULL + name: own[name] for name in names}}

    def scale(self, name: str) -> Scale:
        if name not in self.card.scales:
            raise UserError(f"--scale={name}: {self.name} has {', '.join(self.card.scales)}")
        return self.card.scales[name]

    def seeds(self, scale: Scale) -> list[int]:
        """Of each arm but the null ones, which have others."""
        return [self.card.first_seed + number for number in range(scale.seeds)]

    def registration(self, name: str) -> dict[str, Any]:
        """What stands before the first run of a scale, and is held to afterwards."""
        claims = json.loads(json.dumps([asdict(claim) for claim in self.claims]))
        return {
            "kind": "card",
            "card": self.name,
            "scale": name,
            "seeds": self.seeds(self.scale(name)),
            "claims": claims,
        }

    def points(self, scale: Scale) -> list[SweepPoint]:
        """A run for each arm and seed, seed by seed: whatever is there when it is stopped is
        paired. Raises ConfigError."""
        points = []
        for own_seed in self.seeds(scale):
            for arm, overrides in self.arms(scale).items():
                seed = own_seed + NULL_SEEDS * arm.startswith(NULL)
                given = {**scale.overrides, **overrides, SEED: seed}
                name = f"{plain(arm)},seed={seed}"
                points.append(build_point(scale.config, given, arm=arm, name=name))
        return points


def names() -> list[str]:
    """The cards, in alphabetical order."""
    return sorted(file.parent.name for file in HERE.glob("*/verdict.py"))


def load_card(name: str) -> LoadedCard:
    """UserError where there is no such card."""
    if name not in names():
        meant = nearest(name, names())
        message = f"did you mean {meant}?" if meant else f"there are {', '.join(names())}"
        raise UserError(f"no card {name!r}; {message}")
    sweep, verdict = (
        importlib.import_module(f"experiments.{name}.{part}") for part in ("sweep", "verdict")
    )
    return LoadedCard(name, sweep.CARD, tuple(verdict.CLAIMS))
