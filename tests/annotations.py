"""The checker of jaxtyping annotations that conftest installs: beartype, aware of pytrees."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks every call of `function`, and dataclasses where our code builds them.

    JAX rebuilds registered dataclasses with whatever leaves it has at the moment (None, shardings,
    axis numbers), so an ``__init__`` that is called from inside jax is let through.
    """
    checked = beartype(function)
    if function.__name__ != "__init__":
        return checked

    @functools.wraps(function)
    def init(*args: Any, **kwargs: Any) -> Any:
        return (function if _called_from_jax() else checked)(*args, **kwargs)

    return init


def _called_from_jax() -> bool:
    frame = sys._getframe(2)
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] == "jaxtyping":
        frame = frame.f_back
    return bool(frame) and frame.f_globals.get("__name__", "").partition(".")[0] == "jax"
