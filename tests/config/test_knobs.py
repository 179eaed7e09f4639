"""Schedules of scalars, and knobs as arguments of a compiled function."""

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
from moe_jax.config.fields import knob
from moe_jax.config.knobs import (
    KnobSchedules,
    bind,
    knob_values,
    knobs,
    parse_schedule,
    parse_schedules,
)
from tests.config.toy import Greedy, Layer, Lazy, Nested, Toy

KNOB = "layer.chooser.noise"


def scheduled(*texts: str) -> Toy:
    return Toy(schedules=tuple(f"{KNOB} = {text}" for text in texts))


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
    ("entry", "told"),
    [
        ("nonsense", "must read like"),
        ("layer.chooser.nois = constant(1)", f"did you mean {KNOB}"),
        ("nois = constant(1)", "those that can: "),
        ("layer.size = constant(1)", "layer.size cannot follow a schedule"),
        (f"{KNOB} = liner(0, 1, 2)", "did you mean linear"),
        (f"{KNOB} = linear(0, 1)", r"linear\(start, end, steps\)"),
        (f"{KNOB} = constant()", r"constant\(value\)"),
        (f"{KNOB} = linear(0, x, 2)", "takes numbers"),
        (f"{KNOB} = linear(0, inf, 2)", "takes finite numbers"),
        (f"{KNOB} = linear(0, 1, 0)", "at least 1"),
        (f"{KNOB} = linear(0, 1, 2.5)", "must be an integer"),
        (f"{KNOB} = exponential(0, 1, 2)", "same sign"),
        (f"{KNOB} = exponential(-1, 1, 2)", "same sign"),
        (f"{KNOB} = piecewise(1, 2)", "a value after each step"),
        (f"{KNOB} = piecewise(1, 20, 2, 10, 3)", "increase"),
        (f"{KNOB} = piecewise(1, 0, 2)", "above 0"),
        (f"{KNOB} = linear(0.5, -1, 10)", "-1 at step 10 must be at least 0"),
        (f"{KNOB} = piecewise(1, 5, -2, 6, 0)", "-2 at step 5 must be at least 0"),
    ],
)
def test_a_wrong_schedule_is_a_problem_of_the_config(entry, told):
    config = Toy(schedules=(entry, "also wrong"))
    found = [problem for problem in check(config) if problem.path == "schedules"]
    assert len(found) == 2
    assert repr(entry) in found[0].rule
    with pytest.raises(ConfigError, match=told):
        parse_schedules(config)


def test_two_schedules_for_one_knob():
    (problem,) = check(scheduled("constant(1)", "constant(2)"))
    assert "has a schedule already" in problem.rule


def test_all_knobs_have_a_value_at_every_step():
    config = Toy(
        layer=Layer(chooser=Nested(weight=2.0, inner=Lazy())),
        schedules=("layer.chooser.inner.noise = linear(0, 1, 4)",),
    )
    assert check(config) == []
    assert knobs(config) == {"layer.chooser.weight": 2.0, "layer.chooser.inner.noise": 0.25}
    values = KnobSchedules(config)
    assert values.scheduled == {"layer.chooser.inner.noise"}
    assert values(1) == {"layer.chooser.weight": 2.0, "layer.chooser.inner.noise": 0.25}
    assert values(3)["layer.chooser.inner.noise"] == 0.75
    assert knob_values(config, 3) == values(3)
    assert {type(value) for value in values(3).values()} == {np.float32}


def test_a_knob_that_stays_0_is_no_argument():
    """Then code sees a plain 0 and skips what it would multiply."""
    config = Toy(layer=Layer(chooser=Nested(weight=0.0, inner=Greedy(noise=0.0))))
    assert KnobSchedules(config)(0) == {}
    assert bind(config, KnobSchedules(config)(0)).layer.chooser.weight == 0
    ramp = "layer.chooser.weight = linear(0, 1, 4)"
    values = KnobSchedules(dataclasses.replace(config, schedules=(ramp,)))
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


def test_another_value_of_a_knob_does_not_compile_again():
    traces = 0

    @jax.jit
    def scaled(values):
        nonlocal traces
        traces += 1
        layer = bind(Layer(), values, "layer")
        return 2 * layer.chooser.noise

    values = KnobSchedules(scheduled("linear(0, 1, 4)"))
    assert [float(scaled(values(step))) for step in range(5)] == [0, 0.5, 1, 1.5, 2]
    assert traces == 1


def test_a_checker_of_annotations_lets_traced_knobs_pass():
    @dataclasses.dataclass(frozen=True)
    class Checked:
        rate: float = knob(0.0)

    type.__setattr__(Checked, "__init__", beartype(Checked.__init__))
    with pytest.raises(BeartypeException):
        Checked("fast")
    rate = jax.jit(lambda value: bind(Checked(), {"rate": value}).rate)(np.float32(3))
    assert float(rate) == 3.0
