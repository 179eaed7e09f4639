"""What simple learners reach on images of one class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def _pixels(rows: Any) -> tuple[np.ndarray, list[int]]:
    found = [rows[i] for i in range(len(rows))]
    return np.stack([r["image"].ravel() for r in found]), [int(r["label"]) for r in found]


def nearest(train: Any, held: Any, out: Path) -> float:
    """The class of the nearest training image, pixel by pixel."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(1).fit(*_pixels(train))
    return float(model.score(*_pixels(held)))


def linear_on_pixels(train: Any, held: Any, out: Path) -> float:
    """Logistic regression on the pixels."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=100, C=0.01).fit(*_pixels(train))
    return float(model.score(*_pixels(held)))
