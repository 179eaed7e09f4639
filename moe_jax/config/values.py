"""Single values of a config: do they fit a field's type, and how is a text read as one?

Types of fields: bool, int, float, str, Literal, X | None, tuple[X, ...], tuple[X, Y], and one or
several texts, str | tuple[str, ...].
"""

from __future__ import annotations

import functools
import math
import numbers
import operator
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

from moe_jax.config.nearest import nearest

SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
PLURALS = {bool: "truth values", int: "integers", float: "numbers", str: "texts"}
PAIRS = {"(": ")", "[": "]"}
QUOTES = "'\""
TEXTS = tuple[str, ...]
Hint = Any  # the type of a field: a class, or what typing makes of several


class InvalidValue(ValueError):
    """A value that breaks a rule, which is the message."""


def optional(hint: Hint) -> tuple[Hint, bool]:
    """X, True for X | None; the hint itself, False for every other."""
    if get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint):
        inner = [arg for arg in get_args(hint) if arg is not type(None)]
        return functools.reduce(operator.or_, inner), True
    return hint, False


def one_or_more(hint: Hint) -> bool:
    """Whether it is str | tuple[str, ...], None aside."""
    inner, _ = optional(hint)
    return get_origin(inner) in (Union, types.UnionType) and set(get_args(inner)) == {str, TEXTS}


def supported(hint: Hint) -> bool:
    """Whether a field of this type can be checked and read from a text."""
    hint, _ = optional(hint)
    if get_origin(hint) is tuple:
        return all(arg is ... or supported(arg) for arg in get_args(hint))
    return get_origin(hint) is Literal or hint in SCALARS or one_or_more(hint)


def storage_type(hint: Any) -> type:
    """The Python type that holds the value (None aside): what a ConfigDict checks."""
    hint, _ = optional(hint)
    if one_or_more(hint):
        return object
    if get_origin(hint) is Literal:
        return type(get_args(hint)[0])
    return get_origin(hint) or hint


def describe(hint: Hint) -> str:
    """The type in words, to follow "must be"."""
    hint, may_be_none = optional(hint)
    args = get_args(hint)
    if get_origin(hint) is Literal:
        text = "one of " + ", ".join(map(str, args))
    elif get_origin(hint) is tuple and args[-1:] == (...,):
        text = f"a tuple of {PLURALS.get(args[0]) or 'values, each ' + describe(args[0])}"
    elif get_origin(hint) is tuple:
        text = f"a tuple of {len(args)} ({', '.join(map(describe, args))})"
    elif one_or_more(hint):
        text = "a text or a tuple of texts"
    else:
        text = SCALARS[hint]
    return text + (" or None" if may_be_none else "")


def fit(value: Any, hint: Hint) -> Any:
    """`value` as the type `hint` wants it: an int becomes a float, a list a tuple, no more.

    A bool is no number. Raises InvalidValue.
    """
    rule = f"must be {describe(hint)}"
    inner, may_be_none = optional(hint)
    if value is None and may_be_none:
        return None
    if one_or_more(inner):
        inner = str if isinstance(value, str) else TEXTS
    if get_origin(inner) is tuple:
        return _fit_elements(value, inner, rule)
    if get_origin(inner) is Literal:
        for choice in get_args(inner):
            if value == choice and type(value) is type(choice):
                return value
        raise InvalidValue(rule + _hint_at(value, inner))
    if inner is float and _is_number(value, numbers.Real):
        if not math.isfinite(value):
            raise InvalidValue("must be a finite number")
        return float(value)
    if inner is int and _is_number(value, numbers.Integral):
        return int(value)
    if inner is bool and isinstance(value, bool | np.bool_):
        return bool(value)
    if inner is str and isinstance(value, str):
        return str(value)
    raise InvalidValue(rule)


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _hint_at(value: object, literal: Hint) -> str:
    match = nearest(str(value), map(str, get_args(literal)))
    return f"; did you mean {match}?" if match else ""


def _fit_elements(
    values: object, hint: Hint, rule: str, by: Callable[[Any, Hint], object] = fit
) -> tuple:
    """Each element by its type; the number of elements where the type says it."""
    if not isinstance(values, list | tuple):
        raise InvalidValue(rule)
    args = get_args(hint)
    if args[-1:] == (...,):
        args = (args[0],) * len(values)
    if len(values) != len(args):
        raise InvalidValue(f"{rule}, has {len(values)}")
    try:
        return tuple(by(value, arg) for value, arg in zip(values, args, strict=True))
    except InvalidValue as invalid:
        raise InvalidValue(f"{rule} (an element {invalid})") from None


def parse(text: str, hint: Hint) -> Any:
    """The value of type `hint` that `text` stands for on a command line. Raises InvalidValue.

    Integers as 1_000, no 1e3; booleans true, false, 1, 0; None as none; tuples as 1,2 or (1, 2),
    where a comma within brackets or quotes belongs to the element. Of str | tuple[str, ...] a
    comma makes several: a,b or (a,); quotes around the whole make it one: 'a,b'.
    """
    rule = f"must be {describe(hint)}"
    inner, may_be_none = optional(hint)
    if may_be_none and text.strip().lower() == "none":
        return None
    if one_or_more(inner):
        if not _outer_commas(_unbracketed(text.strip())):
            return text if (plain := _unquoted(text.strip())) == text.strip() else plain
        inner = TEXTS
    if get_origin(inner) is tuple:
        return _fit_elements(split_elements(text), inner, rule, by=parse)
    if get_origin(inner) is Literal:
        named = {str(choice): choice for choice in get_args(inner)}
        if text not in named:
            raise InvalidValue(rule + _hint_at(text, inner))
        return named[text]
    if inner is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.strip().lower() not in words:
            raise InvalidValue(rule)
        return words[text.strip().lower()]
    try:
        return fit(inner(text), hint)
    except InvalidValue:
        raise
    except ValueError:
        raise InvalidValue(rule) from None


def split_elements(text: str) -> list[str]:
    """Cuts "a, f(b, c)" or "(a, 'b')" at its outer commas; a last comma may end the list."""
    text = _unbracketed(text.strip())
    elements, start = [], 0
    for at in _outer_commas(text):
        elements.append(text[start:at])
        start = at + 1
    if text[start:].strip() or not text.strip():
        elements.append(text[start:])
    elements = [_unquoted(element.strip()) for element in elements]
    return [] if elements == [""] else elements


def _unbracketed(text: str) -> str:
    enclosed = text and PAIRS.get(text[0]) == text[-1] and _closing(text) == len(text) - 1
    return text[1:-1] if enclosed else text


def _closing(text: str) -> int:
    """Where the bracket that opens `text` closes."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0:
            return at
    return -1


def _outer_commas(text: str) -> list[int]:
    commas, depth, quote = [], 0, ""
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        elif character == "," and depth == 0:
            commas.append(at)
        depth += (character in "([") - (character in ")]")
    return commas


def _unquoted(text: str) -> str:
    quoted = len(text) >= 2 and text[0] in QUOTES and text[-1] == text[0]
    return text[1:-1] if quoted else text


def written(value: object, hint: Hint) -> str:
    """The text that `parse` reads as this value of the type `hint`."""
    if isinstance(value, list | tuple):
        texts = [_quoted(element) if isinstance(element, str) else element for element in value]
        return ", ".join(map(str, texts)) + ("," if len(value) == 1 else "")
    return _quoted(value) if one_or_more(hint) and isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """In quotes where a comma, a bracket or a quote would be read as more than itself."""
    if "," not in text and _unquoted(text) == text:
        return text
    return f'"{text}"' if "'" in text else f"'{text}'"
