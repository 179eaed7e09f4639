"""Errors that are the user's to mend: one clear message, an exit code, no traceback."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

# Of an OSError that more room would mend: on the disk, of a quota, or below `ulimit -f`.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A mistake in a flag, a config, a path or a file, reported in one message.

    The commands (``moe_jax.train`` and its siblings) print the message on stderr and end with
    ``exit_code``: 2 for what the user can change (the default), 1 for the machine's faults
    (a full disk).
    """

    def __init__(self, message: str, *, exit_code: int = 2):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Problem:
    """One broken rule: where (dotted config path), what stands there, and what is asked."""

    path: str
    value: object
    rule: str

    def __str__(self) -> str:
        return f"config.{self.path} = {self.value!r}: {self.rule}"


class ConfigError(UserError):
    """All the problems of a config at once."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        head = "the config has a problem:" if len(problems) == 1 else "the config has problems:"
        super().__init__("\n  ".join([head, *map(str, problems)]))
