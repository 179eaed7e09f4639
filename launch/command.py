"""What is started on a cluster: a command with its arguments, behind `--` on the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from moe_jax.config.errors import UserError

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: start it again
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclass(frozen=True)
class Command:
    """python -m MODULE ARGUMENTS."""

    module: str
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, module: str, arguments: Sequence[str]) -> Command:
        """UserError where there is nothing to run, or no folder that outlives the machine."""
        if not arguments:
            raise UserError("nothing to run: give the arguments of the run after --")
        if not any(argument.startswith("--workdir=") for argument in arguments):
            raise UserError("the arguments after -- have no --workdir=DIR")
        return cls(module, tuple(arguments))

    def argv(self, python: str = "python") -> list[str]:
        return with_stopped_code([python, "-m", self.module, *self.arguments])

    def __str__(self) -> str:
        """For a shell."""
        return shlex.join(self.argv())


def with_stopped_code(argv: Sequence[str]) -> list[str]:
    """The command line, so that a run which is stopped before its end says so by its exit code."""
    stopped = [f"--stopped_exit_code={STOPPED}"] if "moe_jax.train" in argv else []
    return [*argv, *stopped]


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before and behind the first --."""
    place = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:place]), list(argv[place + 1 :])


def require_label(name: str) -> str:
    """A name that Kubernetes and Google Cloud take. UserError for any other."""
    if not LABEL.fullmatch(name):
        rule = "lower-case letters, digits and -, from a letter on, at most 40"
        raise UserError(f"--name={name}: must be {rule}")
    return name
