"""The algebra of sweeps: a sweep is a sequence of points, a point is a set of overrides.

A config file, or a file of its own, gives one by a function `get_sweep(h)`, where h is this module:

    def get_sweep(h):
        switch = h.product(h.fixed("moe.router.kind", "switch"),
                           h.sweep("moe.capacity_factor", [1.0, 1.25, 2.0]))
        return h.product(h.chain(switch, h.fixed("moe.router.kind", "mixtral")), h.seeds(3))

Paths are those of the config without "config.".
"""

from __future__ import annotations

import builtins
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from moe_jax.config.errors import UserError

Point = dict[str, object]  # dotted path -> value
Sweep = tuple[Point, ...]

SEED = "seed"
MAX_POINTS = 10_000  # of a sweep; each is built and checked before the first one runs


def sweep(path: str, values: Iterable[object]) -> Sweep:
    """One point a value. UserError for more values than a sweep may have points."""
    points = tuple({path: value} for value in itertools.islice(values, MAX_POINTS + 1))
    _require_few(path, len(points))
    return points


def fixed(path: str, value: object) -> Sweep:
    """One point."""
    return ({path: value},)


def seeds(count: int, first: int = 0) -> Sweep:
    """The seeds first, ..., first + count - 1: of init, data order and routing, where the config
    does not set these apart."""
    return sweep(SEED, range(first, first + count))


def product(*sweeps: Sequence[Mapping[str, object]]) -> Sweep:
    """Every combination of a point of each; the last varies fastest. UserError where two of them
    set the same path, or there are too many."""
    _require_few("a product", math.prod(map(len, sweeps)))
    return tuple(_merged(points) for points in itertools.product(*sweeps))


def zip(*sweeps: Sequence[Mapping[str, object]]) -> Sweep:
    """The first points of all together, then the second ones, ... UserError where their lengths
    differ, or two set the same path."""
    lengths = [len(points) for points in sweeps]
    if len(set(lengths)) > 1:
        raise UserError(f"sweep: zip of {' and '.join(map(str, lengths))} points")
    return tuple(_merged(points) for points in builtins.zip(*sweeps, strict=True))


def chain(*sweeps: Sequence[Mapping[str, object]]) -> Sweep:
    """All points of the first, then all of the second, ..."""
    return tuple(dict(point) for points in sweeps for point in points)


def _require_few(what: str, count: int) -> None:
    if count > MAX_POINTS:
        raise UserError(f"sweep: {what} gives more than {MAX_POINTS:,} points")


def _merged(points: Iterable[Mapping[str, object]]) -> Point:
    merged: Point = {}
    for point in points:
        if both := sorted(merged.keys() & point.keys()):
            raise UserError(f"sweep: {', '.join(both)} is set twice in one point")
        merged |= point
    return merged


# As text, for the command line


def parse(text: str) -> Sweep:
    """The product of the parts of "PATH=VALUE,VALUE,...; PATH=...".

    Values are texts, which the config's types read; commas within brackets or quotes belong to the
    value, and quotes around all of it are taken away; A..B stands for the integers A to B. Several
    paths that go together: "(PATH, PATH) = (VALUE, VALUE), (VALUE, VALUE)". UserError for a text
    that is no sweep.
    """
    parts = [part.strip() for part in split(text, ";")]
    if not any(parts):
        raise UserError("--sweep is empty; write PATH=VALUE,VALUE")
    return product(*(_parse_part(part) for part in parts if part))


def _parse_part(part: str) -> Sweep:
    left, equals, right = (piece.strip() for piece in part.partition("="))
    if not equals or not left or not right:
        raise UserError(f"--sweep: {part!r} is not PATH=VALUE,VALUE")
    values = [value.strip() for value in split(right, ",")]
    if "" in values:
        raise UserError(f"--sweep: {part!r} has an empty value")
    if not left.startswith("("):
        texts = [unquoted(text) for value in values for text in _range(value)]
        return sweep(path_of(left), texts)
    paths = [path_of(path.strip()) for path in split(left[1:].removesuffix(")"), ",")]
    points: list[Point] = []
    for value in values:
        together = split(value[1:-1], ",") if value[0] + value[-1] == "()" else []
        if len(together) != len(paths):
            raise UserError(f"--sweep: {value!r} is not ({', '.join(['VALUE'] * len(paths))})")
        points.append(
            {
                path: unquoted(given.strip())
                for path, given in builtins.zip(paths, together, strict=True)
            }
        )
    return tuple(points)


def path_of(text: str, flag: str = "--sweep") -> str:
    """A path without "config.". UserError, which names the flag, for what is none."""
    path = text.removeprefix("config.")
    if not re.fullmatch(r"\w+(\.\w+)*", path):
        raise UserError(f"{flag}: {text!r} is not the path of a setting")
    return path


def _range(value: str) -> list[str]:
    """The integers of "A..B", both included; any other value as it is."""
    match = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", value)
    if match is None:
        return [value]
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise UserError(f"--sweep: {value} runs backwards")
    _require_few(value, last - first + 1)
    return [str(number) for number in range(first, last + 1)]


def unquoted(value: str) -> str:
    """The text without quotes around all of it."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted and value[0] not in value[1:-1] else value


def split(text: str, mark: str) -> list[str]:
    """`text` at each `mark` outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == mark and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    if depth or quote:
        raise UserError(f"a bracket or quote is left open in {text!r}")
    return parts
