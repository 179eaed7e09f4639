"""Layers of a model's tree, however they are stacked."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def of_all_layers(layers: dict[str, Any]) -> Any:
    """One tree with leaves (L, ...) of layers of one kind that are compiled one by one."""
    in_order = [layers[name] for name in sorted(layers)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *in_order)
