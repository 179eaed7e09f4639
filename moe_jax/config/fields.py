"""How config dataclasses declare their fields.

A config is a tree of frozen, keyword-only dataclasses, each beside what it configures. Two kinds
of field need a mark: alternatives chosen by name (`kind`) and scalars that may follow a schedule
(`schedulable`). A class may define ``check(self)`` that yields ``(field, rule)`` for each broken
rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Rule = tuple[str, str]  # (field name, what is asked of it)


def kind(table: Mapping[str, Any], default: Callable[[], Any]) -> Any:
    """A field that holds one of several dataclasses, chosen by its name in `table`.

    In the ConfigDict the subtree has an extra first key ``kind``: the table's key, or
    ``"my_module:MyClass"`` for a class from outside the package.
    """
    return dataclasses.field(default_factory=default, metadata={"kinds": table})


def schedulable(default: float) -> Any:
    """A float that may follow a schedule. It reaches the compiled step as a runtime scalar, so
    changing it does not recompile."""
    return dataclasses.field(default=default, metadata={"schedulable": True})


def at_least(config: object, minimum: float, *names: str) -> Iterator[Rule]:
    """Rule: each named field is >= `minimum` (None passes: an optional value that is not set)."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < minimum:
            yield name, f"must be at least {minimum}"


def at_most(config: object, maximum: float, *names: str) -> Iterator[Rule]:
    """Rule: each named field is <= `maximum` (None passes)."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value > maximum:
            yield name, f"must be at most {maximum}"


def one_of(
    config: object, choices: Mapping[str, object] | tuple[str, ...], *names: str
) -> Iterator[Rule]:
    """Rule: each named field is one of `choices`."""
    for name in names:
        if getattr(config, name) not in choices:
            yield name, "must be one of " + ", ".join(choices)


def languages_of(config: object, known: tuple[str, ...], name: str = "languages") -> Iterator[Rule]:
    """Rule: the field is some of the `known` languages, at least one and each once."""
    chosen = getattr(config, name)
    if not chosen or not set(chosen) <= set(known):
        yield name, f"must be some of {', '.join(known)}"
    elif len(set(chosen)) < len(chosen):
        yield name, "names a language twice"
