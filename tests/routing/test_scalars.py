"""Routers as pytrees: leaves are the scalars that may follow a schedule."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from moe_jax.config.schedules import schedulable_values
from moe_jax.routing import ROUTERS
from moe_jax.routing.base import BaseRouter
from moe_jax.routing.scalars import as_pytree


@pytest.mark.parametrize("kind", ROUTERS)
def test_leaves_are_the_schedulable_scalars_that_are_not_zero(kind):
    router = ROUTERS[kind]()
    values = {path: value for path, value in schedulable_values(router).items() if value != 0}
    leaves, form = jax.tree.flatten(as_pytree(router))
    assert leaves == list(values.values())
    assert jax.tree.unflatten(form, leaves) == router
    moved = dataclasses.replace(router, **{path: value / 2 for path, value in values.items()})
    assert jax.tree.structure(moved) == form and hash(jax.tree.structure(moved)) == hash(form)


def test_another_value_is_no_new_program_and_zero_is():
    traces = []

    @jax.jit
    def twice(router):
        traces.append(isinstance(router.noise_std, jax.Array))
        return 2 * jnp.asarray(router.noise_std)

    for value in (1.0, 0.25, 0.0):
        router = as_pytree(ROUTERS["noisy_top_k"](k=2, noise_std=value))
        assert twice(router) == 2 * value
    assert traces == [True, False]  # 0 is known when the program is made


def test_everything_else_is_static():
    """Another k is another program; a class that its author has registered stays as it is."""
    one, other = (as_pytree(ROUTERS["noisy_top_k"](k=k)) for k in (1, 2))
    assert jax.tree.structure(one) != jax.tree.structure(other)

    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(BaseRouter):
        k: int = 1

    assert jax.tree.leaves(as_pytree(Own())) == []
