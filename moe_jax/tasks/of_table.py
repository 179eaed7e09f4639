"""What tasks on rows of tables share: the features of a row, and its targets by name."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.data.types import Columns
from moe_jax.nn.context import TableBatch
from moe_jax.tasks.types import RawBatch, real_rows

FEATURES = ("categories", "numbers")


def columns_read(columns: Columns, targets: Sequence[str]) -> tuple[str, ...]:
    """The features that the data have, both where they have none, and the targets."""
    return (*(tuple(name for name in FEATURES if name in columns) or FEATURES), *targets)


def table_sizes(columns: Columns) -> tuple[int, int]:
    """How many categories and numbers a row has."""
    categories, numbers = (columns[name].shape[0] if name in columns else 0 for name in FEATURES)
    return categories, numbers


class TargetsByName:
    """names: of the columns that are told of a row; nan where one is not known."""

    names: tuple[str, ...]

    def inputs(self, raw: RawBatch) -> TableBatch:
        ids, numbers = raw.get("categories"), raw.get("numbers")
        return TableBatch(
            id_BC=None if ids is None else jnp.asarray(ids),
            number_BN=None if numbers is None else jnp.asarray(numbers),
            valid_B=real_rows(raw),
            row_B=raw["row"],
        )

    def targets(self, raw: RawBatch) -> Float[Array, "B T"]:
        return jnp.stack([jnp.asarray(raw[name]) for name in self.names], axis=1)
