"""What fits a type, and what a text on the command line stands for."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from moe_jax.config.values import InvalidValue, fit, parse, split_elements, supported, written

TEXTS = str | tuple[str, ...]


@pytest.mark.parametrize(
    ("value", "hint", "result"),
    [
        (3, int, 3),
        (np.int64(3), int, 3),
        (3, float, 3.0),
        (np.float32(0.5), float, 0.5),
        (True, bool, True),
        (np.bool_(False), bool, False),
        ("x", str, "x"),
        (None, int | None, None),
        (2, float | None, 2.0),
        ([1, 2], tuple[int, ...], (1, 2)),
        ((1,), tuple[float, ...], (1.0,)),
        (("a", 1), tuple[str, float], ("a", 1.0)),
        (((1, 2), (3,)), tuple[tuple[int, ...], ...], ((1, 2), (3,))),
        ("b", Literal["a", "b"], "b"),
        (1, Literal[0, 1], 1),
        ("a,b", TEXTS, "a,b"),
        (["a", "b"], TEXTS, ("a", "b")),
        (None, TEXTS | None, None),
    ],
)
def test_fit_takes(value, hint, result):
    fitted = fit(value, hint)
    assert fitted == result
    assert type(fitted) is type(result)


@pytest.mark.parametrize(
    ("value", "hint", "rule"),
    [
        (True, int, "an integer"),
        (True, float, "a number"),
        (1, bool, "true or false"),
        (2.0, int, "an integer"),
        ("3", int, "an integer"),
        (3, str, "a text"),
        (None, int, "an integer"),
        ("x", int | None, "an integer or None"),
        (float("nan"), float, "finite"),
        (float("inf"), float | None, "finite"),
        ((1, "a"), tuple[int, ...], "a tuple of integers"),
        ((1, True), tuple[int, ...], "a tuple of integers"),
        ((1, 2, 3), tuple[int, int], "has 3"),
        ("ab", tuple[str, ...], "a tuple of texts"),
        (True, Literal[0, 1], "one of 0, 1"),
        ("fats", Literal["fast", "slow"], "did you mean fast"),
        (3, TEXTS, "a text or a tuple of texts"),
        (("a", 3), TEXTS | None, "a text or a tuple of texts or None"),
        (None, TEXTS, "a text or a tuple of texts"),
    ],
)
def test_fit_refuses(value, hint, rule):
    with pytest.raises(InvalidValue, match=rule):
        fit(value, hint)


@pytest.mark.parametrize(
    ("text", "hint", "result"),
    [
        ("1_000", int, 1000),
        ("-3", int, -3),
        ("1e-3", float, 0.001),
        ("3", float, 3.0),
        ("True", bool, True),
        ("0", bool, False),
        ("none", float | None, None),
        ("None", int | None, None),
        ("4", int | None, 4),
        ("1,2", tuple[int, ...], (1, 2)),
        ("(1, 2)", tuple[int, ...], (1, 2)),
        ("[1]", tuple[int, ...], (1,)),
        ("1,", tuple[int, ...], (1,)),
        ("()", tuple[int, ...], ()),
        ("", tuple[int, ...], ()),
        ("a,b c", tuple[str, ...], ("a", "b c")),
        ("('a', \"b,c\")", tuple[str, ...], ("a", "b,c")),
        ("a = f(0, 1), b = g(2)", tuple[str, ...], ("a = f(0, 1)", "b = g(2)")),
        ("(1), (2)", tuple[str, ...], ("(1)", "(2)")),
        ("x,2", tuple[str, float], ("x", 2.0)),
        ("  as is ", str, "  as is "),
        ("none", str, "none"),
        ("slow", Literal["fast", "slow"], "slow"),
        ("1", Literal[0, 1], 1),
        (" as is ", TEXTS, " as is "),
        ("a, b c", TEXTS, ("a", "b c")),
        ("(a, b)", TEXTS, ("a", "b")),
        ("a,", TEXTS, ("a",)),
        ("'a, b'", TEXTS, "a, b"),
        ("'a, b',", TEXTS, ("a, b",)),
        ("[ab]", TEXTS, "[ab]"),
        ("x[a,b]", TEXTS, "x[a,b]"),
        ("none", TEXTS | None, None),
        ("none", TEXTS, "none"),
    ],
)
def test_parse_reads(text, hint, result):
    parsed = parse(text, hint)
    assert parsed == result
    assert type(parsed) is type(result)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("1e3", int),
        ("2.0", int),
        ("true", int),
        ("two", float),
        ("nan", float),
        ("inf", float),
        ("yes", bool),
        ("2", bool),
        ("none", int),
        ("1,a", tuple[int, ...]),
        ("1,,2", tuple[int, ...]),
        ("a", tuple[str, float]),
        ("fats", Literal["fast", "slow"]),
    ],
)
def test_parse_refuses(text, hint):
    with pytest.raises(InvalidValue, match="must be"):
        parse(text, hint)


@pytest.mark.parametrize(
    "value", ["a", "a b", "a, b", "'a'", "it's, b", "[ab]", (), ("a",), ("a", "b"), ("a, b", "c")]
)
def test_what_is_written_is_read_again(value):
    hint = TEXTS if value else tuple[str, ...]
    assert parse(written(value, hint), hint) == value


def test_an_empty_element_between_commas_is_kept():
    assert split_elements("a,,b") == ["a", "", "b"]


def test_types_that_no_config_can_hold():
    assert supported(tuple[int, ...])
    assert supported(Literal["a"] | None)
    assert supported(TEXTS | None)
    for hint in (list[int], dict[str, int], int | str, object, int | str | None, str | tuple[int]):
        assert not supported(hint)
