"""The datasets that a config can name: a table of dataclasses, each of which opens a split."""

from __future__ import annotations

from moe_jax.data.mixture import Mixture
from moe_jax.data.sources import SOURCES
from moe_jax.data.stdlib_text import StdlibText
from moe_jax.data.types import Dataset, Rows

DATASETS: dict[str, type] = {**SOURCES, "mixture": Mixture}

__all__ = ["DATASETS", "Dataset", "Rows", "StdlibText"]
