"""Routers as pytrees: their schedulable scalars are leaves, all else is static.

Another value of a scalar then needs no new compilation, and whoever calls a layer may trace it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

import jax
from jaxtyping import Array

from moe_jax.config.schedules import bind, schedulable_values
from moe_jax.routing.types import Router

R = TypeVar("R", bound=Router)


def as_pytree(router: R) -> R:
    """The router, whose class is a JAX pytree from here on.

    Leaves: the fields that may follow a schedule, by their paths. A field that is the number 0 is
    static: what it would multiply (noise, say) is then not computed.
    """
    _register(type(router))
    return router


@functools.cache
def _register(cls: type[Router]) -> None:
    with suppress(ValueError):  # its author has registered it
        jax.tree_util.register_pytree_node(cls, _flatten, _unflatten)


Static = tuple[Router, tuple[str, ...]]  # with zeros in the places of the leaves; their paths


def _flatten(router: Router) -> tuple[tuple[Array, ...], Static]:
    values = {
        path: value
        for path, value in schedulable_values(router).items()
        if not (isinstance(value, int | float) and value == 0)
    }
    zeros = dict.fromkeys(values, 0.0)
    return tuple(values.values()), (bind(router, zeros), tuple(values))  # type: ignore[arg-type]


def _unflatten(static: Static, leaves: Sequence[Array]) -> Router:
    router, paths = static
    return bind(router, dict(zip(paths, leaves, strict=True)))
