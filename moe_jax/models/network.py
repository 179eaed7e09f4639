"""A module as pure functions over nested dicts of arrays, sharded by the rule table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import KeyPath
from jaxtyping import Array, PyTree

from moe_jax.nn.param import axes_of, forms_of
from moe_jax.parallel.rules import sharding

Params = dict[str, PyTree[Array]]  # nested


class Network:
    """`module` split once: `init(key)` creates its parameters sharded, `apply` calls it.

    Parameters are nested plain dicts ("layers/00/moe/experts/w_up"), so that optimizers,
    checkpoints and notebooks need to know nothing of Flax.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], mesh: Mesh):
        self._make = make
        self.mesh = mesh
        abstract = nnx.eval_shape(lambda: make(nnx.Rngs(params=jax.random.key(0))))
        self.abstract_module: Any = abstract  # shapes in the place of arrays
        self._graph, self._state = nnx.split(abstract)
        self.abstract: Params = nnx.to_pure_dict(self._state)
        self.axes: Params = axes_of(self._state)
        self.forms: Params = forms_of(self._state)
        self.shardings: Params = jax.tree_util.tree_map_with_path(
            lambda path, leaf, axes: sharding(mesh, axes, leaf.shape, path_name(path)),
            self.abstract,
            self.axes,
        )
        placed = nnx.traversals.flatten_mapping(self.shardings)
        for path, variable in nnx.to_flat_state(self._state):
            # Flax's own metadata, which `nnx.get_partition_spec` reads.
            variable.set_metadata(out_sharding=tuple(placed[path].spec))

    def init(self, key: jax.Array) -> Params:
        """New parameters, each created on its own devices."""

        def create(key: jax.Array) -> Params:
            return nnx.to_pure_dict(nnx.state(self._make(nnx.Rngs(params=key)), nnx.Param))

        return jax.jit(create, out_shardings=self.shardings)(key)

    def module(self, params: Params) -> Any:
        """The module with these parameters in it."""
        values = nnx.traversals.flatten_mapping(params)
        variables = {
            path: variable.replace(values[path])
            for path, variable in nnx.to_flat_state(self._state)
        }
        return nnx.merge(self._graph, nnx.from_flat_state(variables))

    def apply(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        return self.module(params)(*args, **kwargs)


def path_name(path: KeyPath, separator: str = "/") -> str:
    """A pytree path as "layers/00/moe/router/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator=separator)


def flat(tree: PyTree, separator: str = "/") -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path, separator): leaf for path, leaf in leaves}


def abstract_with(tree: PyTree, shardings: PyTree[NamedSharding]) -> PyTree[jax.ShapeDtypeStruct]:
    """ShapeDtypeStructs with shardings: what a checkpoint is restored into."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, jax.sharding.PartitionSpec())
