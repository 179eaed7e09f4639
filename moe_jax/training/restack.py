"""Arrays of layers in a file, brought to how a program stacks them.

A stack "layers.02" of n layers holds arrays (n, ...) of the layers 2, 2 + p, 2 + 2 p, ..., where p
stacks alternate. Where layers are compiled one by one each is a stack of its own
(models/layout.py). What a file holds in one of these forms is read into the other, by the one name
that an array has in both (models/by_layer.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moe_jax.models.by_layer import NAME, Stacks, layer_names

PARAMETERS = "params.layers."


def stacks_of(shapes: Mapping[str, object]) -> Stacks:
    """The layers of each stack, from the shapes of the parameters' arrays; {} where these do not
    say it."""
    counts: dict[str, int] = {}
    for name, shape in shapes.items():
        found = NAME.fullmatch(name)
        if found and found[1] == PARAMETERS:
            count = shape[0] if isinstance(shape, Sequence) and shape else None
            if not isinstance(count, int) or counts.setdefault(found[2], count) != count:
                return {}
    period = sum(count > 1 for count in counts.values())
    return {
        first: tuple(int(first) + period * i for i in range(count))
        for first, count in counts.items()
    }


@dataclass(frozen=True)
class _Row:
    """Where a layer's array is: row `row` of the array `name`, which has `count`."""

    name: str
    row: int
    count: int


@dataclass(frozen=True)
class Restacking:
    """How arrays of a program are made of those of a file.

    asked: what to read, by the file's names. rows: of each array of the program that is made of
    others, where its layers are; all others have the same name in both.
    """

    asked: dict[str, jax.ShapeDtypeStruct]
    rows: dict[str, tuple[_Row, ...]]

    @classmethod
    def of(
        cls, wanted: Mapping[str, jax.ShapeDtypeStruct], stored: Mapping[str, object]
    ) -> Restacking:
        """wanted: ShapeDtypeStructs with shardings by name. stored: shapes by name."""
        new, old = stacks_of({n: leaf.shape for n, leaf in wanted.items()}), stacks_of(stored)
        layers = sorted(layer for stack in old.values() for layer in stack)
        if new == old or layers != sorted(layer for stack in new.values() for layer in stack):
            return cls(dict(wanted), {})
        place: dict[str, _Row] = {}
        for name in stored:
            names = layer_names(name, old)
            place |= {one: _Row(name, i, len(names)) for i, one in enumerate(names)}
        asked: dict[str, jax.ShapeDtypeStruct] = {}
        rows: dict[str, tuple[_Row, ...]] = {}
        for name, leaf in wanted.items():
            names = layer_names(name, new)
            if not names or not all(one in place for one in names):
                asked[name] = leaf  # of no stack, or not in the file, as the comparison will say
                continue
            rows[name] = tuple(place[one] for one in names)
            for row in rows[name]:
                shape = (row.count, *leaf.shape[1:]) if leaf.shape else ()
                asked[row.name] = jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)
        return cls(asked, rows)

    def restacked(
        self, wanted: Mapping[str, jax.ShapeDtypeStruct], read: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """The arrays of the program by name, from those that were read."""
        if not self.rows:
            return dict(read)

        def make(read: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            return {
                name: _joined([read[row.name] for row in rows], rows)
                for name, rows in self.rows.items()
            }

        sources = {row.name: read[row.name] for rows in self.rows.values() for row in rows}
        shardings = {name: wanted[name].sharding for name in self.rows}
        others = {name: array for name, array in read.items() if name not in sources}
        found: dict[str, jax.Array] = others | jax.jit(make, out_shardings=shardings)(sources)
        return found


def _joined(arrays: Sequence[jax.Array], rows: Sequence[_Row]) -> jax.Array:
    """One row of each. A scalar belongs to all layers alike."""
    if not arrays[0].ndim:
        return arrays[0]
    return jnp.concatenate(
        [array[row.row : row.row + 1] for array, row in zip(arrays, rows, strict=True)]
    )
