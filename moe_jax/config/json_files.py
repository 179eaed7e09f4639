"""JSON that others may have written, torn or changed: read in one way, with one message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_jax.config.errors import UserError

Json = Any  # what json.loads gives
JsonObject = dict[str, Json]


def parsed(text: str | bytes) -> Json:
    """The value of a JSON text. ValueError for whatever is wrong with it, its depth included. Half
    a surrogate pair, which JSON may hold and no UTF-8 text, becomes a question mark; an integer
    that is too large for a float64 is inf, as 1e999 is."""
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    try:
        value = json.loads(text, parse_int=_integer)
        if "\\ud" in text or "\\uD" in text:
            whole = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
            value = json.loads(whole, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def _integer(digits: str) -> int | float:
    # Of 309 digits and more some are beyond 2^1024.
    return int(digits) if len(digits) < 309 else float(digits)


def read_value(file: Path) -> Json:
    """The value that a file holds. FileNotFoundError where there is none; UserError, with the
    path, where it cannot be read or is no JSON."""
    try:
        return parsed(file.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{file}: is torn or no JSON ({error})") from error


def read_object(file: Path) -> JsonObject:
    """The same of a JSON object."""
    value = read_value(file)
    if not isinstance(value, dict):
        raise UserError(f"{file}: is no JSON object")
    return value


def last_step(file: Path) -> int:
    """The largest "step" of a file of metrics; 0 where there is no file, or none in it."""
    if not file.is_file():
        return 0
    steps = (line.get("step") for line in read_lines(file))
    return max((step for step in steps if type(step) is int), default=0)


def read_lines(file: Path) -> Iterator[JsonObject]:
    """The objects of a file of lines; what is torn or none is passed over. OSError."""
    with file.open("rb") as stream:
        for text in stream:
            try:
                line = parsed(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line
