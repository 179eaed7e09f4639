"""Which of XLA's flags the installed XLA knows: one that it does not know ends the process.

Flags come and go with jaxlib's releases, and XLA aborts (no exception, no exit code of ours) when
XLA_FLAGS names one that it has never heard of. So flags are asked about before they are used: a
process of its own starts XLA with them and says which are unknown. That takes a second, once for
a release of jaxlib and a flag: answers are kept in ~/.cache/moe_jax/xla_flags.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from moe_jax.config.errors import UserError
from moe_jax.config.paths import home_cache

VARIABLE = "XLA_FLAGS"
_PROBE = "from jaxlib import xla_client; xla_client.make_cpu_client()"
_UNKNOWN = re.compile(r"Unknown flags? in XLA_FLAGS: (.*)")
_MEMORY: dict[str, dict[str, bool]] = {}  # by release of jaxlib: whether a flag's name is known


def unknown(flags: Iterable[str]) -> tuple[str, ...]:
    """Those of the flags ("--xla_name=value") that the installed XLA does not know."""
    flags = tuple(flags)
    answers = _answers()
    if asked := [flag for flag in flags if _name(flag) not in answers]:
        strange = {_name(flag) for flag in _ask(asked)}
        answers |= {_name(flag): _name(flag) not in strange for flag in asked}
        _keep(answers)
    return tuple(flag for flag in flags if not answers[_name(flag)])


def known(flags: Iterable[str], *, warn: bool = True) -> tuple[str, ...]:
    """Those that it knows; for each other one a line on stderr says that it is left out. warn:
    False where nobody would miss it, as of a flag for speed that newer releases need no more."""
    flags = tuple(flags)
    strange = unknown(flags)
    for flag in strange if warn else ():
        sys.stderr.write(f"{flag} is left out: jaxlib {_release()} does not know this XLA flag\n")
    return tuple(flag for flag in flags if flag not in strange)


def add(*flags: str) -> None:
    """Puts flags into XLA_FLAGS, in front of what is there, so that the user's own count. Before
    XLA starts. Names that the user has given a value, and unknown ones, are left out."""
    given = os.environ.get(VARIABLE, "")
    names = {_name(flag) for flag in given.split()}
    new = known(flag for flag in flags if _name(flag) not in names)
    os.environ[VARIABLE] = " ".join([*new, given]).strip()


def require_known() -> None:
    """UserError where XLA_FLAGS names what would abort the process."""
    # A word without dashes is the name of a file with flags.
    flags = [word for word in os.environ.get(VARIABLE, "").split() if word.startswith("--xla_")]
    if strange := unknown(flags):
        raise UserError(
            f"{VARIABLE}: jaxlib {_release()} does not know {', '.join(strange)}; "
            "XLA flags come and go with its releases"
        )


def _name(flag: str) -> str:
    return flag.removeprefix("--").partition("=")[0]


def _release() -> str:
    return metadata.version("jaxlib")


def _ask(flags: Sequence[str]) -> list[str]:
    """Starts XLA with the flags in another process: the unknown ones.

    XLA names all unknown flags at once, but only if none of the others has a value that it cannot
    read: that ends in a UserError with XLA's own words.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", VARIABLE: " ".join(flags)}
    command = [sys.executable, "-c", _PROBE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return []
    if found := _UNKNOWN.search(done.stderr):
        return [word for word in found[1].split() if word.startswith("--")]
    said = done.stderr.strip().partition("\n")[0]
    raise UserError(f"{VARIABLE}={' '.join(flags)}: XLA does not start: {said}")


def _file() -> Path:
    return home_cache() / "xla_flags.json"


def _answers() -> dict[str, bool]:
    """What is known of this release, from the file at first."""
    release = _release()
    if release not in _MEMORY:
        kept: object = {}
        with contextlib.suppress(OSError, ValueError):
            kept = json.loads(_file().read_text("utf-8"))
        own = kept.get(release) if isinstance(kept, dict) else None
        good = isinstance(own, dict) and all(isinstance(value, bool) for value in own.values())
        _MEMORY[release] = dict(own) if good and isinstance(own, dict) else {}
    return _MEMORY[release]


def _keep(answers: dict[str, bool]) -> None:
    """Writes the answers for the next process; without a word where the home cannot be written."""
    with contextlib.suppress(OSError):
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as new:
            json.dump({_release(): answers}, new)
        os.replace(new.name, file)
