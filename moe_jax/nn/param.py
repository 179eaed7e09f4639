"""Parameters with logical axis names and a form, and initialisers by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import PyTree

from moe_jax.ops.initializers import Initializer
from moe_jax.parallel.axes import MeshAxes
from moe_jax.routing.types import Matrix, ParamSpec

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """What a parameter is for an optimizer: matrices, vectors or scalars, and whether they decay.

    rows, columns: the axes of one matrix. A vector has no rows, a scalar neither. They count from
    the last axis, because layers are stacked in front; all other axes are batch axes.
    """

    rows: Axes
    columns: Axes
    decays: bool

    @classmethod
    def of(cls, rank: int, matrix: Matrix | None, decays: bool) -> Form:
        """Of a parameter with so many axes; ValueError for axes that it does not have."""
        rows, columns = ((), tuple(range(rank))[-1:]) if matrix is None else matrix
        if any(not -rank <= axis < rank for axis in (*rows, *columns)):
            raise ValueError(f"matrix {matrix} has axes that {rank} dimensions do not have")
        rows, columns = (tuple(axis % rank - rank for axis in part) for part in (rows, columns))
        if matrix is not None and not (rows and columns):
            raise ValueError(f"matrix {matrix} has no rows or no columns; None is a vector")
        if len({*rows, *columns}) < len(rows) + len(columns):
            raise ValueError(f"matrix {matrix} names an axis twice")
        return cls(rows, columns, decays)

    @property
    def is_matrix(self) -> bool:
        return bool(self.rows)

    def axes(self, rank: int) -> tuple[Axes, Axes]:
        """(rows, columns) of an array of this rank, counted from its first axis."""
        rows, columns = (tuple(rank + axis for axis in part) for part in (self.rows, self.columns))
        return rows, columns

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(rows, columns) of one matrix of an array of this shape; 1 where there are none."""
        rows, columns = (
            math.prod(shape[axis] for axis in part) for part in (self.rows, self.columns)
        )
        return rows, columns


def parameter(
    rngs: nnx.Rngs,
    init: Initializer,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype: DTypeLike = jnp.float32,
    *,
    matrix: Matrix | None,
    decays: bool,
) -> nnx.Param[Array]:
    """A Param whose metadata `axes` names each dimension for `parallel.rules`, and whose metadata
    `form` says what optimizers take it for.

    matrix: the (row axes, column axes) of one matrix; None: a vector along the last axis, or a
    scalar. decays: whether weight decay acts on it.
    """
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} and axes {axes} differ in length")
    form = Form.of(len(shape), matrix, decays)
    return nnx.Param(init(rngs.params(), shape, dtype), axes=axes, form=form)


class Parameters(nnx.Module):
    """Parameters that somebody without Flax asks for, a router or an expert: attributes by name."""

    def __init__(
        self,
        specs: Mapping[str, ParamSpec],
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        for name, spec in specs.items():
            form: dict[str, Any] = dict(dtype=dtype, matrix=spec.matrix, decays=spec.decays)
            setattr(self, name, parameter(rngs, spec.init, spec.shape, spec.axes, **form))
        self.names = tuple(specs)

    def arrays(self) -> dict[str, Array]:
        return {name: getattr(self, name)[...] for name in self.names}

    def specs(self, axes: MeshAxes) -> dict[str, PartitionSpec]:
        """How those of experts lie on a mesh."""
        return {
            name: axes.of_weights(tuple(getattr(self, name).get_metadata("axes")))
            for name in self.names
        }


def axes_of(state: nnx.State[str, PyTree]) -> dict[str, PyTree[tuple[str | None, ...]]]:
    """The logical axes of every parameter of a state, as nested plain dicts.

    A parameter with one more dimension than names is stacked over layers: "layers" leads.
    """

    def axes(variable: nnx.Variable[Array]) -> tuple[str | None, ...]:
        names = tuple(variable.get_metadata("axes"))
        stacked = len(variable.get_value().shape) - len(names)
        return ("layers",) * stacked + names

    flat = {path: axes(variable) for path, variable in nnx.to_flat_state(state)}
    return nnx.traversals.unflatten_mapping(flat)


def forms_of(state: nnx.State[str, PyTree]) -> dict[str, PyTree[Form]]:
    """The form of every parameter of a state, as nested plain dicts."""
    flat = {path: variable.get_metadata("form") for path, variable in nnx.to_flat_state(state)}
    return nnx.traversals.unflatten_mapping(flat)
