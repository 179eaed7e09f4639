"""Runs the rules that the dataclasses of a config state about their own fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moe_jax.config.errors import ConfigError, Problem
from moe_jax.config.tree import join, settings, type_problems, value_at


def check(config: Any) -> list[Problem]:
    """Every wrong type and every broken rule of the tree, with paths and values.

    A dataclass's ``check()`` yields (field, rule); a field may be a dotted path below it. It is
    not called where a type below it is wrong, as it may compare the value.
    """
    problems = type_problems(config)
    wrong = [problem.path for problem in problems]
    return problems + list(_own_rules(config, "", wrong))


def require(config: Any) -> None:
    """Raises ConfigError with every problem that `check` finds."""
    if problems := check(config):
        raise ConfigError(problems)


def _own_rules(config: Any, path: str, wrong: list[str]) -> Iterator[Problem]:
    below = path + "." if path else ""
    if hasattr(config, "check") and not any(at.startswith(below) for at in wrong):
        for name, rule in config.check():
            yield Problem(join(path, name), value_at(config, name), rule)
    for name, setting in settings(type(config)).items():
        if setting.subtree and (at := join(path, name)) not in wrong:
            yield from _own_rules(getattr(config, name), at, wrong)
