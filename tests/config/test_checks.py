"""The rules of the dataclasses, gathered over the tree."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from moe_jax.config.checks import check, require
from moe_jax.config.errors import ConfigError
from tests.config.toy import Greedy, Layer, Nested, Toy


def test_a_good_config_has_no_problems():
    assert check(Toy()) == []
    require(Toy())


def test_problems_of_every_level_have_full_paths_and_values():
    config = Toy(
        steps=0, layer=Layer(size=-1, capacity=0.5, chooser=Nested(inner=Greedy(k=0, noise=-1.0)))
    )
    message = {(problem.path, problem.value) for problem in check(config)}
    assert message == {
        ("steps", 0),
        ("layer.size", -1),
        ("layer.capacity", 0.5),
        ("layer.chooser.inner.k", 0),
        ("layer.chooser.inner.noise", -1.0),
    }
    with pytest.raises(ConfigError, match="has problems") as caught:
        require(config)
    assert len(caught.value.problems) == 5
    assert caught.value.exit_code == 2


def test_a_rule_may_point_below_its_class():
    (problem,) = check(Toy(limit=8))
    assert (problem.path, problem.value) == ("layer.size", 16)
    assert str(problem) == "config.layer.size = 16: must be at most limit = 8"


def test_a_wrong_type_is_told_beside_the_broken_rules():
    # Greedy.check compares "two" < 1, and stops there.
    config = Toy(steps=0, layer=Layer(size=0, chooser=Greedy(k="two", noise=-1.0)))
    assert [problem.path for problem in check(config)] == ["layer.chooser.k", "steps", "layer.size"]


@dataclass(frozen=True)
class Faulty:
    size: int = 1

    def check(self):
        yield "size", f"must divide {1 // 0}"


def test_a_fault_in_a_rule_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        check(Faulty())
