"""What a rule and sliding windows reach on objects in boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def _objects(rows: Any) -> list[Any]:
    """Of each image."""
    from experiments.tasks.baselines.windows import corners
    from moe_jax.tasks.average_precision import Found

    found = []
    for i in range(len(rows)):
        row = rows[i]
        there = row["classes"] >= 0
        found.append(Found(corners(row["boxes"][there]), row["classes"][there]))
    return found


def _precision(detected: Any, held: Any) -> float:
    from moe_jax.tasks.average_precision import average_precision

    return average_precision(detected, _objects(held), len(held.classes))["average_precision"]


def mean_box(train: Any, held: Any, out: Path) -> float:
    """A box of the training objects' mean size at each patch of 8 x 8 to the image, for every
    class."""
    from moe_jax.tasks.average_precision import Found

    sizes = [row["boxes"][row["classes"] >= 0, 2:] for row in map(train.__getitem__, range(1000))]
    half = np.concatenate(sizes).mean(axis=0) / 2
    x, y = np.meshgrid((np.arange(8) + 0.5) / 8, (np.arange(8) + 0.5) / 8)
    middle = np.stack([x.ravel(), y.ravel()], axis=1)
    corner = np.concatenate([middle - half, middle + half], axis=1)
    classes = len(held.classes)
    number = np.repeat(np.arange(classes), len(corner))
    everywhere = Found(np.tile(corner, (classes, 1)), number, np.ones(len(number)))
    return _precision([everywhere] * len(held), held)


def sliding_windows(train: Any, held: Any, out: Path) -> float:
    """Logistic regression on histograms of oriented gradients, at several scales."""
    from experiments.tasks.baselines.windows import detected

    return _precision(detected(train, held), held)
