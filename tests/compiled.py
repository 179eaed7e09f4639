"""Routers of the tests as compiled programs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax


def compiled(route: Callable[..., Any]) -> Callable[..., Any]:
    """`route` of arrays as one program: op by op a test compiles hundreds of small ones. What is
    traced anyway, and a router with scheduled scalars bound to it, goes its usual way."""
    jitted = jax.jit(route, static_argnums=0)

    @functools.wraps(route)
    def call(self: Any, *arguments: Any) -> Any:
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments))
        fixed = all(isinstance(value, int | float | str | None) for value in vars(self).values())
        return (jitted if fixed and not traced else route)(self, *arguments)

    return call
