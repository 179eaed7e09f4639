"""The datasets that a config can name: a table of dataclasses, each of which opens a split."""

from __future__ import annotations

from moe_jax.config.errors import UserError
from moe_jax.data.box_mixture import BoxMixture
from moe_jax.data.mixture import Mixture
from moe_jax.data.sources import SOURCES
from moe_jax.data.stdlib_text import StdlibText
from moe_jax.data.types import Dataset, Rows

DATASETS: dict[str, type] = {**SOURCES, "mixture": Mixture, "box_mixture": BoxMixture}

__all__ = ["DATASETS", "Dataset", "Rows", "StdlibText", "classes_of", "vocabulary_of"]


def vocabulary_of(dataset: Dataset) -> int | None:
    """How many ids its tokenizer has, at most, as its settings say it; None where they do not."""
    method = getattr(dataset, "vocabulary", None)
    try:
        return None if method is None else method()
    except UserError:  # which opening the dataset tells
        return None


def classes_of(dataset: Dataset) -> tuple[str, ...]:
    """The names of its classes as its settings say them; () where they do not."""
    method = getattr(dataset, "class_names", None)
    return () if method is None else tuple(method())
