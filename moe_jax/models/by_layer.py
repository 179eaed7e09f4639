"""One name for each layer's array, however the layers are stacked where they run.

"layers/07/moe/experts/w_up" (E, D, F) is layer 7's. A program has it as its own stack "layers/07"
(1, E, D, F), or as a row of a stack "layers/03" (n, E, D, F) of the layers 3, 5, 7, ...; the names
with numbers of layers are the same in both (models/layout.py says what is stacked). Whatever brings
parameters from one model to another goes by these names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from moe_jax.models.layout import Layout
from moe_jax.models.network import flat, path_name

Leaf = TypeVar("Leaf", Array, np.ndarray)
# The layers of each stack, by its name: the number of the first.
Stacks = Mapping[str, tuple[int, ...]]
# What stands before the number of a stack; optimizers have trees of their own that end in these.
NAME = re.compile(r"((?:.*[./])?(?:layers|router_state)[./])(\d+)([./].*)")


def layer_names(name: str, stacks: Stacks) -> tuple[str, ...]:
    """Of the name of a stack's array, those of its layers, in the order of the rows; () for an
    array of no stack. Parts of names are separated by "/" or "."."""
    found = NAME.fullmatch(name)
    layers = stacks.get(found[2], ()) if found else ()
    return tuple(f"{found[1]}{layer:02d}{found[3]}" for layer in layers) if found else ()


def unstack(params: PyTree[Array], layout: Layout) -> dict[str, Any]:
    """The arrays of a tree such as the parameters' or their gradients', one a layer:
    {"embedding": (V, D), "layers/07/moe/experts/w_up": (E, D, F), ...}, numpy or jax as they are.
    """
    return unstacked(flat(params), layout.layers_by_name)


def unstacked(arrays: Mapping[str, Leaf], stacks: Stacks) -> dict[str, Leaf]:
    """`unstack` of arrays that have names already."""
    found: dict[str, Leaf] = {}
    for name, array in arrays.items():
        names = layer_names(name, stacks)
        found |= zip(names, array, strict=True) if names else {name: array}
    return found


def stack(
    arrays: Mapping[str, Array | np.ndarray], layout: Layout, like: PyTree[jax.ShapeDtypeStruct]
) -> PyTree[Array]:
    """The inverse of `unstack`: the tree as a model of that layout runs it.

    like: a tree of that structure, of arrays or ShapeDtypeStructs: values get its dtypes.
    Raises ValueError where an array is missing, belongs to nothing, or has another shape.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    left, wrong, made = dict(arrays), [], []
    for path, leaf in leaves:
        name = path_name(path)
        names = layer_names(name, layout.layers_by_name)
        shape = tuple(leaf.shape[1:] if names else leaf.shape)
        parts = [left.pop(one, None) for one in names or (name,)]
        for one, part in zip(names or (name,), parts, strict=True):
            if part is None:
                wrong.append(f"{one} is missing")
            elif tuple(part.shape) != shape:
                wrong.append(f"{one} is {tuple(part.shape)}, must be {shape}")
        if not wrong:
            values = [jnp.asarray(part, leaf.dtype) for part in parts]
            made.append(jnp.stack(values) if names else values[0])
    wrong += [f"{name} belongs to nothing" for name in left]
    if wrong:
        raise ValueError("these arrays are not the model's: " + "; ".join(wrong))
    return jax.tree.unflatten(structure, made)
