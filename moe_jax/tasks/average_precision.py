"""Average precision of detections as COCO defines it, in numpy.

Lin et al. (1405.0312) and the evaluation of cocodataset.org: a detection, best first, takes the
unmatched object of its class in its image with which it has the greatest intersection over union,
if that is at least a threshold; precision is made monotone and read at 101 recalls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100  # of an image, the best of all its classes' own


@dataclass(frozen=True)
class Found:
    """Detections or objects of one image: corners (n, 4), class_N int (n,), score float (n,) of
    detections."""

    corner_N4: np.ndarray
    class_N: np.ndarray
    score_N: np.ndarray | None = None

    def of_class(self, number: int) -> Found:
        here = self.class_N == number
        score = None if self.score_N is None else self.score_N[here]
        return Found(self.corner_N4[here], self.class_N[here], score)


def average_precision(
    detected: Sequence[Found], there: Sequence[Found], classes: int
) -> dict[str, float]:
    """`mean_precision` of so many classes."""
    return mean_precision(precision_by_class(detected, there, classes))


def precision_by_class(
    detected: Sequence[Found], there: Sequence[Found], classes: int
) -> dict[int, np.ndarray]:
    """Average precision at each threshold of the classes of which there is an object."""
    found = {
        number: class_precision(
            [one.of_class(number) for one in detected], [one.of_class(number) for one in there]
        )
        for number in range(classes)
    }
    return {number: precision_T for number, precision_T in found.items() if precision_T is not None}


def mean_precision(by_class: Mapping[int, np.ndarray]) -> dict[str, float]:
    """average_precision: mean over thresholds 0.5, 0.55, ... 0.95 and over the classes of which
    there is an object; ap50 and ap75 at those thresholds. 0 where there is no object at all."""
    if not by_class:
        return {"average_precision": 0.0, "ap50": 0.0, "ap75": 0.0}
    mean_T = np.mean(list(by_class.values()), axis=0)
    return {
        "average_precision": float(mean_T.mean()),
        "ap50": float(mean_T[0]),
        "ap75": float(mean_T[5]),
    }


def class_precision(detected: Sequence[Found], there: Sequence[Found]) -> np.ndarray | None:
    """Average precision at each threshold, of one class; None where there is no object."""
    objects = sum(len(one.class_N) for one in there)
    if not objects:
        return None
    scores, right = [], []
    for found, real in zip(detected, there, strict=True):
        score_N = np.zeros(0) if found.score_N is None else found.score_N
        best = np.argsort(-score_N, kind="mergesort")[:MAX_DETECTIONS]
        scores.append(score_N[best])
        right.append(_matched(found.corner_N4[best], real.corner_N4))
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    right_TN = np.concatenate(right, axis=1)[:, order]
    return np.array([_area_below(right_N, objects) for right_N in right_TN])


def _matched(detected_N4: np.ndarray, there_M4: np.ndarray) -> np.ndarray:
    """bool (thresholds, detections): whether it takes an object. Best first."""
    T, M = len(THRESHOLDS), len(there_M4)
    right_TN, free_TM = np.zeros((T, len(detected_N4)), bool), np.ones((T, M), bool)
    if not M:
        return right_TN
    least_T, each_T = np.minimum(THRESHOLDS, 1 - 1e-10), np.arange(T)
    for n, overlap_M in enumerate(pairwise_iou(detected_N4, there_M4)):
        candidates_TM = np.where(free_TM, overlap_M, -1.0)
        # Of equal ones the last, as COCO's loop keeps it.
        best_T = M - 1 - np.argmax(candidates_TM[:, ::-1], axis=1)
        right_TN[:, n] = candidates_TM[each_T, best_T] >= least_T
        free_TM[each_T, best_T] &= ~right_TN[:, n]
    return right_TN


def pairwise_iou(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    """(N, M), of corners."""
    a, b = a_N4[:, None].astype(np.float64), b_M4[None].astype(np.float64)
    size = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0)
    intersection = size[..., 0] * size[..., 1]
    union = _area(a) + _area(b) - intersection
    return intersection / np.where(union > 0, union, 1)


def _area(corner: np.ndarray) -> np.ndarray:
    size = np.maximum(corner[..., 2:] - corner[..., :2], 0)
    product: np.ndarray = size[..., 0] * size[..., 1]
    return product


def _area_below(right_N: np.ndarray, objects: int) -> float:
    """The mean over 101 recalls of the greatest precision at that recall or beyond."""
    right = np.cumsum(right_N)
    recall, precision = right / objects, right / np.arange(1, len(right_N) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    reached = at < len(precision)
    return float(
        np.where(reached, np.append(precision, 0.0)[np.minimum(at, len(precision))], 0).mean()
    )
