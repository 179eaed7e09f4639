"""What the optimizer must know of a parameter, from its path: "layers/00/moe/router/kernel".

Below "layers/" every array stacks the layers along its first axis, and experts along its second;
a matrix is what stands behind these axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

Axes = tuple[int, ...]


def by_path(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Maps function(path, leaf, ...) over trees of the same structure."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_of(path), *leaves), tree, *rest
    )


def path_of(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in path)


def group_of(path: str) -> str:
    """The name of the group of a parameter."""
    parts = path.split("/")
    return next((name for name in ("router", "experts") if name in parts), "rest")


def is_matrix(path: str) -> bool:
    """Whether weight decay applies: everything but norm scales and biases. By name, because a
    scale stacked over layers has two dimensions as well."""
    return path.rsplit("/", 1)[-1] not in ("scale", "bias")


def matrix_axes(path: str, rank: int) -> tuple[Axes, Axes]:
    """The (row, column) axes of the matrices that a parameter stacks; a vector has no rows."""
    name = path.rsplit("/", 1)[-1]
    if not is_matrix(path):
        return (), (rank - 1,)
    if name in ("wq", "wk", "wv"):
        return (rank - 3,), (rank - 2, rank - 1)  # (layers, D, heads, head_dim)
    if name == "wo":
        return (rank - 3, rank - 2), (rank - 1,)
    return (rank - 2,), (rank - 1,)


def matrix_shape(path: str, shape: Axes) -> tuple[int, int]:
    """(rows, columns) of one matrix; (1, length) of a vector."""
    rows, columns = matrix_axes(path, len(shape))
    return math.prod(shape[axis] for axis in rows), math.prod(shape[axis] for axis in columns)
