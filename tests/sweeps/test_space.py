"""The algebra of sweeps and its text form."""

from __future__ import annotations

import itertools

import pytest

from moe_jax.config.errors import UserError
from moe_jax.sweeps import space as h


def test_product_zip_and_chain_are_those_of_itertools():
    a, b = h.sweep("a", [1, 2]), h.sweep("b", "xyz")
    product = [(p["a"], p["b"]) for p in h.product(a, b)]
    assert product == list(itertools.product([1, 2], "xyz"))
    assert [(p["a"], p["c"]) for p in h.zip(a, h.sweep("c", [5, 6]))] == [(1, 5), (2, 6)]
    assert h.chain(a, h.fixed("d", 0)) == ({"a": 1}, {"a": 2}, {"d": 0})
    assert h.product(a, h.seeds(2, first=7))[1] == {"a": 1, "seed": 8}
    assert h.product() == ({},)


def test_points_are_copies():
    a = h.fixed("a", 1)
    h.chain(a)[0]["a"] = 2
    h.product(a)[0]["a"] = 2
    assert a == ({"a": 1},)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: h.product(h.fixed("a", 1), h.fixed("a", 2)), "a is set twice"),
        (lambda: h.zip(h.sweep("a", [1, 2]), h.sweep("b", [1])), "zip of 2 and 1 points"),
    ],
)
def test_what_does_not_fit_is_refused(build, message: str):
    with pytest.raises(UserError, match=message):
        build()


def test_a_text_is_the_product_of_its_parts():
    parsed = h.parse("moe.router.k=1,2,4; config.moe.capacity_factor = 1.0, none; seed=0..2;")
    by_hand = h.product(
        h.sweep("moe.router.k", ["1", "2", "4"]),
        h.sweep("moe.capacity_factor", ["1.0", "none"]),
        h.sweep("seed", ["0", "1", "2"]),
    )
    assert parsed == by_hand
    assert len(parsed) == 18


def test_commas_within_brackets_and_quotes_belong_to_the_value():
    text = """schedules=("a = linear(0, 1, 5)",),(); name='x, y; z'"""
    assert h.parse(text) == h.product(
        h.sweep("schedules", ['("a = linear(0, 1, 5)",)', "()"]), h.fixed("name", "x, y; z")
    )


def test_paths_in_brackets_go_together():
    parsed = h.parse("(moe.num_experts, moe.expert_dim) = (8, 256), (16, 128)")
    assert parsed == (
        {"moe.num_experts": "8", "moe.expert_dim": "256"},
        {"moe.num_experts": "16", "moe.expert_dim": "128"},
    )


@pytest.mark.parametrize(
    "text",
    ["", " ; ", "k", "k=", "=1", "k=1,,2", "k=3..1", "(a,b)=(1,2),(3)", "(a,b)=1", "a b=1", "a=(1"],
)
def test_what_is_no_sweep_is_told(text: str):
    with pytest.raises(UserError, match=r"--sweep|left open"):
        h.parse(text)


@pytest.mark.parametrize(
    "build",
    [
        lambda: h.parse("seed=0..300000000"),
        lambda: h.seeds(300_000_000),
        lambda: h.product(h.seeds(200), h.sweep("a", range(200))),
        lambda: h.sweep("a", itertools.count()),
    ],
)
def test_more_points_than_a_sweep_may_have_are_refused(build):
    with pytest.raises(UserError, match=r"more than 10,000 points"):
        build()
