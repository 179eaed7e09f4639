"""Schedules of scalars, and scalars as arguments of a compiled function."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
from beartype import beartype
from beartype.roar import BeartypeException

from moe_jax.config.checks import check
from moe_jax.config.errors import ConfigError
from moe_jax.config.fields import schedulable
from moe_jax.config.schedules import (
    Schedules,
    bind,
    parse_schedule,
    parse_schedules,
    scalars_at,
    schedulable_values,
)
from tests.config.toy import Greedy, Layer, Lazy, Nested, Toy

PATH = "layer.chooser.noise"


def scheduled(*texts: str) -> Toy:
    return Toy(schedules=tuple(f"{PATH} = {text}" for text in texts))


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("constant(0.3)", {0: 0.3, 9: 0.3}),
        ("linear(1, 3, 10)", {0: 1, 5: 2, 10: 3, 99: 3}),
        ("linear(0, -1, 1e1)", {0: 0, 1: -0.1, 10: -1}),
        ("cosine(1, 0, 4)", {0: 1, 1: (1 + math.sqrt(0.5)) / 2, 2: 0.5, 4: 0, 5: 0}),
        ("exponential(1, 0.01, 2)", {0: 1, 1: 0.1, 2: 0.01, 3: 0.01}),
        ("exponential(-1, -4, 2)", {1: -2}),
        ("piecewise(1, 10, 2, 20, 3)", {0: 1, 9: 1, 10: 2, 19: 2, 20: 3, 99: 3}),
        ("piecewise(5)", {0: 5}),
        ("linear( .5 ,1_0.0, 2 )", {0: 0.5, 2: 10}),
    ],
)
def test_schedules_have_the_values_of_their_formulas(text, points):
    schedule = parse_schedule(text)
    for step, value in points.items():
        assert schedule(step) == pytest.approx(value, rel=1e-12, abs=1e-12)


def test_a_ramp_ends_exactly_and_stays():
    for kind in ("linear", "cosine", "exponential"):
        schedule = parse_schedule(f"{kind}(0.3, 0.1, 7)")
        assert [schedule(step) for step in (7, 8, 10**9)] == [0.1] * 3


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nonsense", "must read like"),
        ("layer.chooser.nois = constant(1)", f"did you mean {PATH}"),
        ("nois = constant(1)", "those that can: "),
        ("layer.size = constant(1)", "layer.size cannot follow a schedule"),
        (f"{PATH} = liner(0, 1, 2)", "did you mean linear"),
        (f"{PATH} = linear(0, 1)", r"linear\(start, end, steps\)"),
        (f"{PATH} = constant()", r"constant\(value\)"),
        (f"{PATH} = linear(0, x, 2)", "takes numbers"),
        (f"{PATH} = linear(0, inf, 2)", "takes finite numbers"),
        (f"{PATH} = linear(0, 1, 0)", "at least 1"),
        (f"{PATH} = linear(0, 1, 2.5)", "must be an integer"),
        (f"{PATH} = exponential(0, 1, 2)", "same sign"),
        (f"{PATH} = exponential(-1, 1, 2)", "same sign"),
        (f"{PATH} = piecewise(1, 2)", "a value after each step"),
        (f"{PATH} = piecewise(1, 20, 2, 10, 3)", "increase"),
        (f"{PATH} = piecewise(1, 0, 2)", "above 0"),
        (f"{PATH} = linear(0.5, -1, 10)", "-1 at step 10 must be at least 0"),
        (f"{PATH} = piecewise(1, 5, -2, 6, 0)", "-2 at step 5 must be at least 0"),
    ],
)
def test_a_wrong_schedule_is_a_problem_of_the_config(entry, message):
    config = Toy(schedules=(entry, "also wrong"))
    found = [problem for problem in check(config) if problem.path == "schedules"]
    assert len(found) == 2
    assert repr(entry) in found[0].rule
    with pytest.raises(ConfigError, match=message):
        parse_schedules(config)


def test_two_schedules_for_one_scalar():
    (problem,) = check(scheduled("constant(1)", "constant(2)"))
    assert "has a schedule already" in problem.rule


def test_all_scalars_have_a_value_at_every_step():
    config = Toy(
        layer=Layer(chooser=Nested(weight=2.0, inner=Lazy())),
        schedules=("layer.chooser.inner.noise = linear(0, 1, 4)",),
    )
    assert check(config) == []
    assert schedulable_values(config) == {
        "layer.chooser.weight": 2.0,
        "layer.chooser.inner.noise": 0.25,
    }
    values = Schedules(config)
    assert values.scheduled == {"layer.chooser.inner.noise"}
    assert values(1) == {"layer.chooser.weight": 2.0, "layer.chooser.inner.noise": 0.25}
    assert values(3)["layer.chooser.inner.noise"] == 0.75
    assert scalars_at(config, 3) == values(3)
    assert {type(value) for value in values(3).values()} == {np.float32}


def test_a_scalar_that_stays_0_is_no_argument():
    """Then code sees a plain 0 and skips what it would multiply."""
    config = Toy(layer=Layer(chooser=Nested(weight=0.0, inner=Greedy(noise=0.0))))
    assert Schedules(config)(0) == {}
    assert bind(config, Schedules(config)(0)).layer.chooser.weight == 0
    ramp = "layer.chooser.weight = linear(0, 1, 4)"
    values = Schedules(dataclasses.replace(config, schedules=(ramp,)))
    assert [values(step) for step in (0, 1)] == [
        {"layer.chooser.weight": 0.0},
        {"layer.chooser.weight": 0.25},
    ]


def test_bind_takes_paths_of_the_whole_config():
    config = Toy(layer=Layer(chooser=Nested(inner=Greedy())))
    values = {"layer.chooser.inner.noise": 0.125, "elsewhere.noise": 1.0}
    changed = Nested(inner=Greedy(noise=0.125))
    assert bind(config, values) == dataclasses.replace(config, layer=Layer(chooser=changed))
    assert bind(config.layer, values, "layer") == Layer(chooser=changed)
    assert bind(config.layer.chooser.inner, values, "layer.chooser.inner") == changed.inner
    assert config == Toy(layer=Layer(chooser=Nested(inner=Greedy())))
    assert bind(config.layer, values) is config.layer  # other paths: nothing to replace


def test_another_value_of_a_scalar_does_not_compile_again():
    traces = 0

    @jax.jit
    def scaled(values):
        nonlocal traces
        traces += 1
        layer = bind(Layer(), values, "layer")
        return 2 * layer.chooser.noise

    values = Schedules(scheduled("linear(0, 1, 4)"))
    assert [float(scaled(values(step))) for step in range(5)] == [0, 0.5, 1, 1.5, 2]
    assert traces == 1


def test_a_checker_of_annotations_lets_traced_scalars_pass():
    @dataclasses.dataclass(frozen=True)
    class Checked:
        rate: float = schedulable(0.0)

    type.__setattr__(Checked, "__init__", beartype(Checked.__init__))
    with pytest.raises(BeartypeException):
        Checked("fast")
    rate = jax.jit(lambda value: bind(Checked(), {"rate": value}).rate)(np.float32(3))
    assert float(rate) == 3.0
