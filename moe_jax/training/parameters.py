"""What the optimizer must know of a parameter: its group, from its path in the tree
("layers/00/moe/router/kernel"), and its form, which it declares itself (`nn.param.parameter`).

Below "layers/" every array stacks the layers along its first axis, and experts along its second;
forms count their axes from the last, so that both are batch axes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import jax
from jaxtyping import Array, PyTree

from moe_jax.models.network import flat, path_name
from moe_jax.nn.param import Form

Forms = Mapping[str, Form]  # by path


def by_path(function: Callable[..., object], tree: PyTree, *rest: PyTree) -> PyTree:
    """Maps function(path, leaf, ...) over trees of the same structure."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


def group_of(path: str) -> str:
    """The name of the group of a parameter."""
    parts = path.split("/")
    return next((name for name in ("router", "experts") if name in parts), "rest")


def trained(tree: PyTree[Array], frozen: Collection[str]) -> dict[str, Array]:
    """The leaves by path of the groups that are not frozen."""
    return {path: leaf for path, leaf in flat(tree).items() if group_of(path) not in frozen}
