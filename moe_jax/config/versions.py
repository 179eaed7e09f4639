"""The releases of the libraries that moe_jax was tested with, and what is installed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

from moe_jax.config.errors import UserError


@dataclass(frozen=True)
class Supported:
    """oldest: below it something is missing (setup.py asks for it). newest: the last one that the
    test suite was run with (launch/locks); a newer one may work."""

    oldest: str
    newest: str


# Those whose releases change what moe_jax calls.
LIBRARIES = {
    "jax": Supported("0.10.2", "0.12.0.1"),
    "flax": Supported("0.12.8", "0.12.12"),
    "optax": Supported("0.2.8", "0.2.8"),
    "orbax-checkpoint": Supported("0.12.8", "0.12.8"),
    "grain": Supported("0.2.18", "0.2.18"),
    "tensorflow-datasets": Supported("4.9.10", "4.9.10"),
}


def installed(name: str) -> str | None:
    """The release of a library; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def number(release: str) -> tuple[int, ...]:
    """ "0.12.0.1" as (0, 12, 0, 1); what stands behind a letter ("rc1", "+cpu") does not count."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", release)[0]))


def problems() -> list[str]:
    """Libraries that are missing or too old, one sentence each."""
    found = []
    for name, supported in LIBRARIES.items():
        release = installed(name)
        if release is None:
            found.append(f"{name} is not installed; moe_jax needs {supported.oldest} or newer")
        elif number(release) < number(supported.oldest):
            found.append(f"{name} {release} is too old; moe_jax needs {supported.oldest} or newer")
    return found


def newer_than_tested() -> list[str]:
    """Libraries that are newer than any that the tests were run with, one sentence each."""
    return [
        f"{name} {release} is newer than {supported.newest}, the last one that was tested"
        for name, supported in LIBRARIES.items()
        if (release := installed(name)) and number(release) > number(supported.newest)
    ]


def require() -> None:
    """UserError where a library is missing or too old."""
    if found := problems():
        hint = "pip install --upgrade -e . (from the clone) brings what is missing"
        raise UserError("\n  ".join([*found, hint]))
