"""Where a sweep comes from: a text, a file with get_sweep(h), or the config file itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_jax.config.errors import UserError
from moe_jax.config.overrides import run_file, run_user_code
from moe_jax.sweeps import space


def read_sweep(given: str | None, config: str) -> space.Sweep:
    """The points that `given` stands for: a text for `space.parse`, or FILE.py; None: those of the
    config file's get_sweep. UserError where there are none."""
    if given is not None and not given.endswith(".py"):
        return space.parse(given)
    path = Path(config.partition(":")[0] if given is None else given)
    if not path.is_file():
        raise UserError(f"no file {path}")
    function = getattr(run_file(path), "get_sweep", None)
    if not callable(function):
        hint = "; give --sweep=..." if given is None else ""
        raise UserError(f"{path}: has no function get_sweep(h){hint}")
    return checked(run_user_code(path, lambda: function(space)), str(path))


def checked(sweep: Any, source: str) -> space.Sweep:
    """The points as a Sweep. UserError where they are none."""
    is_sweep = isinstance(sweep, Sequence) and all(isinstance(point, Mapping) for point in sweep)
    if not is_sweep:
        raise UserError(f"{source}: get_sweep gives no sequence of dicts from paths to values")
    return tuple(dict(point) for point in sweep)
