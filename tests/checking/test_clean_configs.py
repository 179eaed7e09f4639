"""No false alarm: the check of configs drawn over all routers and their settings finds all equal.

Each with one step on one device (the reference) and two drawn variants. One of the 52 is part of
the ordinary suite, the others of `make test-grid`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from moe_jax.checking import table
from moe_jax.checking.invariance import check, plan
from moe_jax.config import checks
from moe_jax.config.errors import UserError
from moe_jax.config.overrides import load_config
from moe_jax.dispatch import LAYOUTS, SOFT_LAYOUTS
from moe_jax.routing import ROUTERS
from moe_jax.routing.choice import DROP_ORDERS
from moe_jax.routing.losses import SCOPES
from moe_jax.training.experiment import Experiment
from moe_jax.training.rules import cross_check

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
LOSSES = ("load_balance", "device_balance", "importance", "load", "router_z", "router")
DRAWS = 54  # each router twice
ORDINARY = (24,)


def draw(number):
    """(path, value) pairs of the config of this number: its router is number % 27."""
    rng = np.random.default_rng([20, number])
    kind = list(ROUTERS)[number % len(ROUTERS)]
    router = ROUTERS[kind]

    def one(*values):
        return values[rng.integers(len(values))]

    fields = {f.name for f in dataclasses.fields(router)}
    E = one(4, 6, 8)
    found = {
        "seed": int(rng.integers(1000)),
        "moe.router.kind": kind,
        "moe.num_experts": E,
        "moe.num_shared": one(0, 0, 1),
        "moe.latent_dim": one("none", "none", 8),
        "moe.group_size": one("none", 8, 16, 32, 64),
        "moe.renormalize_after_drop": one(False, True),
        "moe.losses.over_layers": one("sum", "mean"),
        "data.sequence_length": 32,
    }
    found["moe.layout"] = one(*sorted(SOFT_LAYOUTS if router.soft else set(LAYOUTS) - {"dense"}))
    if not getattr(router, "own_capacity", False):
        found["moe.capacity_factor"] = one("none", 0.6, 1.0, 1.5)
    if "k" in fields and kind != "gshard":
        found["moe.router.k"] = int(rng.integers(1, E // 2 + 1))
    if "drop_order" in fields:
        found["moe.router.drop_order"] = one(*DROP_ORDERS)
    if "expert_groups" in fields:
        found |= {"moe.router.expert_groups": 2, "moe.router.kept_groups": one(1, 2)}
    for name in LOSSES:
        found[f"moe.losses.{name}.coefficient"] = one(0.0, 0.1)
        found[f"moe.losses.{name}.scope"] = one(*SCOPES)
    found["moe.losses.device_balance.groups"] = 2
    return found, rng


def drawn_plan(number):
    """The first config of this number that the rules allow, with what they forbid taken out, and
    two of its variants, one of them on several devices."""
    settings, rng = draw(number)
    while True:
        experiment = load_config(QUICKSTART, tuple(settings.items()), Experiment)
        problems = checks.check(experiment) or cross_check(experiment, 1)
        if not problems:
            break
        taken = [problem.path for problem in problems if settings.pop(problem.path, None)]
        assert taken, problems
    try:
        planned = plan(experiment, jax.devices(), steps=1)
    except UserError as error:
        raise AssertionError(f"{settings}: {error}") from error
    spread = [v for v in planned.variants if v.devices > 1]
    chosen = {v.name: v for v in (spread[rng.integers(len(spread))],)}
    other = planned.variants[rng.integers(len(planned.variants))]
    chosen[other.name] = other
    return settings, dataclasses.replace(planned, variants=tuple(chosen.values()))


def is_equal(number):
    settings, planned = drawn_plan(number)
    report = check(planned)
    message = "\n".join(table.row(o, planned) for o in (*report.references, *report.outcomes))
    assert report.equal, f"{settings}\n{message}\n{table.foot(report, planned)}"


def test_all_routers_and_settings_are_drawn():
    plans = [drawn_plan(number) for number in range(DRAWS)]
    assert {settings["moe.router.kind"] for settings, _ in plans} == set(ROUTERS)
    ordinary = {plans[number][0]["moe.router.kind"] for number in ORDINARY}
    assert len(ordinary) == len(ORDINARY)
    for path, least in (
        ("moe.group_size", 5),
        ("moe.capacity_factor", 4),
        ("moe.layout", 3),
        ("moe.router.drop_order", 3),
        ("moe.losses.load_balance.scope", 4),
    ):
        values = {settings.get(path) for settings, _ in plans}
        assert len(values) >= least, path
    axes = {axis for _, planned in plans for v in planned.variants for axis in v.axes}
    assert axes == {"data", "fsdp", "expert", "tensor", "sequence"}
    assert {v.accumulation for _, planned in plans for v in planned.variants} == {1, 2, 4}


@pytest.mark.grid
@pytest.mark.parametrize("number", ORDINARY)
def test_a_clean_config_raises_no_alarm(number):
    is_equal(number)


@pytest.mark.grid
@pytest.mark.parametrize("number", sorted(set(range(DRAWS)) - set(ORDINARY)))
def test_every_clean_config_raises_no_alarm(number):
    is_equal(number)
