"""Several gates over one pool of experts (multi-gate mixture of experts): all that there is to
them, behind `Gates`.

Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts"
(KDD 2018), eq. 6 and 7: y^k = sum_i g^k(x)_i f_i(x). Each gate k is a router of its own with its
own parameters, state, capacity and statistics; the experts f are one pool. On a device the gates'
choices are further groups of the same tokens, so that every layout and transport carries them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from moe_jax.nn.cost import Cost
from moe_jax.ops.initializers import Initializer
from moe_jax.routing.types import Matrix, ParamSpec, RouterInputs

Tree = TypeVar("Tree")


@dataclass(frozen=True, kw_only=True)
class Gates:
    """G gates (`config.moe.gates`). Of one there is nothing: every method gives back what it is
    given, and an array has no axis of gates."""

    number: int = 1

    def params(self, specs: Mapping[str, ParamSpec]) -> dict[str, ParamSpec]:
        """The parameters of all gates: each with a leading axis of gates, drawn one by one."""
        if self.number == 1:
            return dict(specs)
        return {
            name: dataclasses.replace(
                spec,
                shape=(self.number, *spec.shape),
                init=_each(spec.init),
                axes=(None, *spec.axes),
                matrix=_behind(spec.matrix, len(spec.shape)),
            )
            for name, spec in specs.items()
        }

    def state(self, state: Mapping[str, Array]) -> dict[str, Array]:
        if self.number == 1:
            return dict(state)
        return {name: jnp.stack([leaf] * self.number) for name, leaf in state.items()}

    def cost(self, cost: Cost) -> Cost:
        """Of what each gate has and does; the experts' own parameters are there once."""
        G = self.number
        return Cost(
            parameters=cost.parameters,
            active=G * cost.active,
            multiplied=G * cost.multiplied,
            attended=G * cost.attended,
            router=cost.router,
            routed=G * cost.routed,
        )

    def each(
        self, run: Callable[..., Tree], inputs: RouterInputs, *of_gate: Mapping[str, Array]
    ) -> Tree:
        """run(*of_gate, inputs) of every gate, with noise of its own, for g groups: leaves
        (g, ...), of several gates (G g, ...), one gate's groups after the other's."""

        def over_groups(inputs: RouterInputs, *of_gate: Mapping[str, Array]) -> Tree:
            found: Tree = jax.vmap(lambda inputs: run(*of_gate, inputs))(inputs)
            return found

        def one(number: Array, *of_gate: Mapping[str, Array]) -> Tree:
            keys = inputs.key
            if keys is not None:
                keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
            return over_groups(dataclasses.replace(inputs, key=keys), *of_gate)

        if self.number == 1:
            return over_groups(inputs, *of_gate)
        found: Tree = jax.vmap(one)(jnp.arange(self.number, dtype=jnp.int32), *of_gate)
        joined: Tree = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
        return joined

    def copies(self, leaf_g: Array) -> Array:
        """What each gate sees of g groups: (g, ...) -> (G g, ...)."""
        if self.number == 1:
            return leaf_g
        copied = jnp.broadcast_to(leaf_g[None], (self.number, *leaf_g.shape))
        return copied.reshape(-1, *leaf_g.shape[1:])

    def shape(self, *shape: int) -> tuple[int, ...]:
        """Of an array that each gate has."""
        return shape if self.number == 1 else (self.number, *shape)

    def mapped(self, run: Callable[[Tree], Tree], tree: Tree) -> Tree:
        """run of each gate's."""
        found: Tree = run(tree) if self.number == 1 else jax.vmap(run)(tree)
        return found


def _each(init: Initializer) -> Initializer:
    def all_gates(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return jnp.stack([init(k, shape[1:], dtype) for k in jax.random.split(key, shape[0])])

    return all_gates


def _behind(matrix: Matrix | None, rank: int) -> Matrix | None:
    """The axes of a matrix, counted from the last, so that one may stand in front."""
    if matrix is None:
        return None
    rows, columns = (tuple(axis % rank - rank for axis in part) for part in matrix)
    return rows, columns
