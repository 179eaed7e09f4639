"""Runs the rules that the dataclasses of a config state about their own fields."""

from __future__ import annotations

from collections.abc import Iterator

from moe_jax.config.errors import ConfigError, Problem
from moe_jax.config.tree import join, settings, type_problems, value_at


def check(config: object) -> list[Problem]:
    """Every wrong type and every broken rule of the tree, with paths and values.

    A dataclass's ``check()`` yields (field, rule); a field may be a dotted path below it.
    """
    problems = type_problems(config)
    wrong = {problem.path for problem in problems}
    return problems + [rule for rule in _own_rules(config, "", wrong) if rule.path not in wrong]


def require(config: object) -> None:
    """Raises ConfigError with every problem that `check` finds."""
    if problems := check(config):
        raise ConfigError(problems)


def _own_rules(config: object, path: str, wrong: set[str]) -> Iterator[Problem]:
    try:
        for name, rule in config.check() if hasattr(config, "check") else ():
            yield Problem(join(path, name), value_at(config, name), rule)
    except Exception:
        # Comparing a value of the wrong type may fail; that value is reported already.
        if not any(at.startswith(path) for at in wrong):
            raise
    for name, setting in settings(type(config)).items():
        if setting.subtree and (at := join(path, name)) not in wrong:
            yield from _own_rules(getattr(config, name), at, wrong)
