"""What every command shares: flags, overrides, and errors that end in one message and an exit code.

A command declares its flags on a FlagValues of its own and hands its main to `run_command`:

    FLAGS = command_flags("config", "workdir")
    flags.DEFINE_integer("samples", 1, "how many texts to write", flag_values=FLAGS)

    def main(arguments: Arguments) -> int | None:
        experiment = load_config(FLAGS.config, arguments.overrides, Experiment)
        ...

    if __name__ == "__main__":
        sys.exit(run_command(main, usage=USAGE, flags=FLAGS))

A command's module imports nothing that takes long: main does, or it is the `body` of another
module.
"""

from __future__ import annotations

import gc
import importlib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from absl import flags as absl_flags
from absl import logging as absl_logging  # noqa: F401 - defines --verbosity, which libraries obey
from absl.flags import FlagValues

from moe_jax.config import versions, xla_flags
from moe_jax.config.activity import doing, watched
from moe_jax.config.errors import UserError
from moe_jax.config.failures import report_error
from moe_jax.config.kinds import trusted
from moe_jax.config.nearest import nearest

STANDARD = {
    "config": "FILE.py[:arg] with a get_config(arg) function",
    "workdir": "the folder of the run",
}
HELP = ("help", "h", "helpshort", "helpfull", "?")


@dataclass(frozen=True)
class Arguments:
    """A command line that was understood.

    overrides: (path without "config.", value) in their order; a text, or True and False for
    --config.x and --noconfig.x.
    """

    flags: FlagValues
    overrides: tuple[tuple[str, str | bool], ...] = ()


def command_flags(*standard: str) -> FlagValues:
    """A command's own flags: --debug and, required, those named of "config" and "workdir"."""
    values = FlagValues()
    for name in standard:
        absl_flags.DEFINE_string(name, None, STANDARD[name], flag_values=values, required=True)
    if "workdir" in standard:
        trust_flag(values)
    text = "show the traceback of an error too"
    absl_flags.DEFINE_boolean("debug", False, text, flag_values=values)
    return values


def trust_flag(values: FlagValues) -> None:
    """Adds --trust, for commands that read what a run has left."""
    text = "import classes that files of a run name (own routers, data sets), and run their code"
    absl_flags.DEFINE_boolean("trust", False, text, flag_values=values)


def process_flags(values: FlagValues) -> None:
    """Adds --coordinator, --processes, --process and --join_timeout: a run of several processes.
    None of them is needed under SLURM, on TPU pods and where the environment names them."""
    absl_flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, of a run of several", flag_values=values
    )
    text = "how many processes the run has; 1: this one alone, whatever the surroundings"
    absl_flags.DEFINE_integer("processes", None, text, flag_values=values)
    absl_flags.DEFINE_integer("process", None, "which of them this is, from 0", flag_values=values)
    text = "seconds to wait until all processes have come"
    absl_flags.DEFINE_float("join_timeout", 300.0, text, lower_bound=1, flag_values=values)


def run_command(
    main: Callable[[Arguments], int | None],
    *,
    usage: str,
    flags: FlagValues,
    overrides: bool | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parses the command line, calls `main` and returns the exit code.

    usage: what --help shows above the flags. overrides: whether --config.a.b=value is taken; by
    default where there is a --config. argv: without the program's name; by default sys.argv[1:].

    0 (or what main returns) on success, 2 for a mistake of the user, 1 for a full disk or memory,
    130 after Ctrl-C: each with one message on stderr, and the traceback only with --debug. An
    error that nobody foresaw is raised.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    overrides = "config" in flags if overrides is None else overrides
    command_line = _CommandLine.of(argv, flags, overrides)
    if command_line.help:
        sys.stdout.write(help_text(usage, flags, overrides))
        return 0
    debug = "--debug" in argv
    try:
        arguments = command_line.parse(flags)
        debug = flags.debug
        versions.require()
        xla_flags.require_known()
        trust = "trust" in flags and flags.trust
        with trusted(trust), watched(), doing("working"):
            exit_code = main(arguments) or 0
        sys.stdout.flush()
        return exit_code
    except BrokenPipeError:  # whoever read this has seen enough: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        code = report_error(error, debug)
        if code is None:
            raise
        return code


@contextmanager
def importing() -> Iterator[None]:
    """Around the imports of a command. They make some 200,000 objects that stay: the collector
    rests meanwhile, and never goes through them again, nor at the end of the process."""
    known = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if len(sys.modules) > known:
            gc.freeze()


def body(module: str) -> Callable[[Arguments], int | None]:
    """The `main` of another module, which is imported when the command is entered: --help and a
    misspelt flag do not wait for what it needs."""

    def main(arguments: Arguments) -> int | None:
        with importing():
            found = importlib.import_module(module)
        return found.main(arguments)

    return main


def help_text(usage: str, flags: FlagValues, overrides: bool) -> str:
    """`usage`, then the command's own flags."""
    rows = []
    for name in flags:
        flag = flags[name]
        if flag.name != name:
            continue  # a short name
        default = "" if flag.default in (None, False, "") else f" (default {flag.default})"
        rows.append((name if flag.boolean else f"{name}=VALUE", f"{flag.help}{default}"))
        if name == "config" and overrides:
            rows.append(_OVERRIDES)
    if overrides and "config" not in flags:
        rows.append(_OVERRIDES)
    width = max(len(left) for left, _ in rows) + 4
    lines = [
        textwrap.fill(
            right,
            100,
            initial_indent=f"  --{left}".ljust(width + 2),
            subsequent_indent=" " * (width + 2),
        )
        for left, right in rows
    ]
    return "\n".join([textwrap.dedent(usage).strip(), "", "flags:", *lines, ""])


_OVERRIDES = ("config.a.b=VALUE", "another value of the config; a kind first, then its settings")


@dataclass
class _CommandLine:
    """Arguments by whom they concern: this command, a library's flags, the config, nobody."""

    own: list[str] = field(default_factory=list)
    library: list[str] = field(default_factory=list)
    overrides: list[tuple[str, str | bool]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    help: bool = False

    @classmethod
    def of(cls, argv: Sequence[str], flags: FlagValues, overrides: bool) -> _CommandLine:
        line, rest = cls(), list(argv)
        while rest:
            argument = rest.pop(0)
            name, equals, value = re.sub("^--?", "", argument).partition("=")
            if not argument.startswith("-") or not name:
                line.problems.append(f"unexpected argument {argument!r}")
            elif name in HELP:
                line.help = True
            elif overrides and name.startswith(("config.", "noconfig.")):
                line._override(name, value if equals else None, rest)
            elif (flag := _find(flags, name)) is not None:
                line.own += _with_value(argument, flag, rest)
            elif (flag := _find(absl_flags.FLAGS, name)) is not None:
                line.library += _with_value(argument, flag, rest)
            else:
                line.problems.append(_unknown(name, flags, overrides))
                if not equals and rest and not rest[0].startswith("-"):
                    rest.pop(0)  # its value
        return line

    def _override(self, name: str, value: str | None, rest: list[str]) -> None:
        """--config.x=v, --config.x v, --config.x (true) or --noconfig.x (false)."""
        if name.startswith("noconfig."):
            path = name.removeprefix("noconfig.")
            if value is not None:
                self.problems.append(f"--{name} takes no value; write --config.{path}={value}")
            self.overrides.append((path, False))
            return
        path = name.removeprefix("config.")
        if value is None and rest and (not rest[0].startswith("-") or _NUMBER.fullmatch(rest[0])):
            value = rest.pop(0)
        self.overrides.append((path, True if value is None else value))

    def parse(self, flags: FlagValues) -> Arguments:
        """Sets `flags` and absl's global FLAGS. Raises UserError with every problem."""
        problems = list(self.problems)
        for name in flags:
            flags[name].unparse()  # a command may run twice in one process
        # Libraries (grain, tokamax) read absl's FLAGS and want them parsed.
        for values, arguments in ((flags, self.own), (absl_flags.FLAGS, self.library)):
            try:
                values(["", *arguments])
            except (absl_flags.Error, ValueError) as error:
                lines = [
                    _REQUIRED.sub(r"--\1 is required", line) for line in str(error).split("\n")
                ]
                misspelt = {f"{meant} is required" for meant in _MEANT.findall("\n".join(problems))}
                problems += [problem for problem in lines if problem not in misspelt]
        empty = [name for name in STANDARD if name in flags and flags[name].value == ""]
        problems += [f"--{name} is empty" for name in empty]
        if problems:
            raise UserError("\n  ".join([*problems, "--help shows the flags"]))
        return Arguments(flags, tuple(self.overrides))


_NUMBER = re.compile(r"-[\d.][\w.+-]*")
_MEANT = re.compile(r"did you mean (--\w+)\?")
_REQUIRED = re.compile(r"flag --(\w+)=None: Flag --\w+ must have a value other than None\.")


def _find(flags: FlagValues, name: str) -> absl_flags.Flag | None:
    """The flag of that name, or the boolean one that "noNAME" turns off."""
    if name in flags:
        return flags[name]
    positive = name.removeprefix("no")
    return flags[positive] if positive in flags and flags[positive].boolean else None


def _with_value(argument: str, flag: absl_flags.Flag, rest: list[str]) -> list[str]:
    """The argument, and the next one where that is its value."""
    takes_next = not flag.boolean and "=" not in argument
    return [argument, *([rest.pop(0)] if takes_next and rest else [])]


def _unknown(name: str, flags: FlagValues, overrides: bool) -> str:
    """That there is no such flag, and which may be meant."""
    first, dot, path = name.partition(".")
    meant: str | None
    if dot and overrides:
        meant = f"config.{path if nearest(first, ['config']) else name}"
    else:
        meant = nearest(name, flags)
    return f"no flag --{name}" + (f"; did you mean --{meant}?" if meant else "")
