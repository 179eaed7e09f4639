"""A detector of a few lines: histograms of oriented gradients in windows that slide over the image
at several scales, and logistic regression (Dalal and Triggs, CVPR 2005)."""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_jax.data.scenes import resized
from moe_jax.tasks.average_precision import Found, pairwise_iou

CELL, BINS = 4, 9  # pixels; orientations of half a turn
WINDOW = 6  # cells
SIDES = (0.24, 0.3, 0.38, 0.48)  # of windows, as shares of the image's side
SCENES, NOTHING = 3000, 12  # training images; windows of each that show no object
NEAR, FAR = 0.3, 0.5  # IoU: below the first a window shows nothing; above the second one is enough
KEPT = 100  # detections of an image


def corners(box_N4: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom of (x, y, w, h)."""
    middle, half = box_N4[:, :2], box_N4[:, 2:] / 2
    return np.concatenate([middle - half, middle + half], axis=1)


def gradients(image_HWC: np.ndarray) -> np.ndarray:
    """(rows, columns, BINS): of each cell, by the strongest channel of a pixel, against the
    strength of the cells around it."""
    dy, dx = np.gradient(image_HWC, axis=(0, 1))
    strength = np.hypot(dy, dx)
    best = strength.argmax(axis=2)[..., None]
    dy, dx, strength = (np.take_along_axis(x, best, axis=2)[..., 0] for x in (dy, dx, strength))
    angle = (np.arctan2(dy, dx) % np.pi / np.pi * BINS).astype(int) % BINS
    rows, columns = (size // CELL for size in strength.shape)
    split = (rows, CELL, columns, CELL)
    strength, angle = (x[: rows * CELL, : columns * CELL].reshape(split) for x in (strength, angle))
    cells = np.stack([(strength * (angle == n)).sum(axis=(1, 3)) for n in range(BINS)], axis=2)
    energy = np.pad((cells**2).sum(axis=2), 1, mode="edge")
    around = sum(energy[y : y + rows, x : x + columns] for y in range(3) for x in range(3))
    return cells / np.sqrt(around + 1e-3)[..., None]


def windows(image_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(windows, features) and the windows' own boxes (x, y, w, h), as shares of a square image."""
    features, boxes = [], []
    for share in SIDES:
        side = round(WINDOW * CELL / share)
        cells = gradients(np.stack([resized(image_HWC[..., c], side) for c in range(3)], axis=2))
        seen = np.lib.stride_tricks.sliding_window_view(cells, (WINDOW, WINDOW), axis=(0, 1))
        rows, columns = seen.shape[:2]
        features.append(seen.reshape(rows * columns, -1))
        y, x = np.mgrid[:rows, :columns].reshape(2, -1) * CELL + WINDOW * CELL / 2
        width = np.full(len(x), WINDOW * CELL)
        boxes.append(np.stack([x, y, width, width], axis=1) / side)
    return np.concatenate(features), np.concatenate(boxes)


def squares(box_N4: np.ndarray) -> np.ndarray:
    """With the longer side both ways: what a window is compared with."""
    longer = box_N4[:, 2:].max(axis=1, keepdims=True, initial=0)
    return np.concatenate([box_N4[:, :2], longer, longer], axis=1)


def examples(train: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of each object the window that fits it best, and windows without one; the classes of both,
    -1 of the latter."""
    random = np.random.default_rng(0)
    features, labels = [], []
    for index in range(min(SCENES, len(train))):
        row = train[index]
        there = row["classes"] >= 0
        found, box_N4 = windows(row["image"])
        overlap_NM = pairwise_iou(corners(box_N4), corners(squares(row["boxes"][there])))
        free = np.flatnonzero(overlap_NM.max(axis=1, initial=0) < NEAR)
        drawn = random.choice(free, min(NOTHING, len(free)), replace=False)
        fitting = overlap_NM.argmax(axis=0)
        features.append(found[np.concatenate([fitting, drawn])])
        labels.append(np.concatenate([row["classes"][there], np.full(len(drawn), -1)]))
    return np.concatenate(features), np.concatenate(labels)


def mean_shapes(train: Any, classes: int) -> np.ndarray:
    """(classes, 2): width and height of a class's boxes against their longer side."""
    boxes, labels = [], []
    for index in range(min(SCENES, len(train))):
        row = train[index]
        there = row["classes"] >= 0
        boxes.append(row["boxes"][there])
        labels.append(row["classes"][there])
    box_N4, label_N = np.concatenate(boxes), np.concatenate(labels)
    shape_N2 = box_N4[:, 2:] / squares(box_N4)[:, 2:]
    return np.stack([shape_N2[label_N == n].mean(axis=0) for n in range(classes)])


def without_doubles(corner_N4: np.ndarray, score_N: np.ndarray) -> np.ndarray:
    """Of detections that cover the same the best one (non-maximum suppression)."""
    overlap_NN = pairwise_iou(corner_N4, corner_N4)
    free_N, kept = np.ones(len(score_N), bool), []
    for place in np.argsort(-score_N):
        if free_N[place]:
            kept.append(place)
            free_N &= overlap_NN[place] < FAR
    return np.array(kept, int)


def detected(train: Any, held: Any) -> list[Found]:
    """Detections of the validation images, KEPT of each."""
    from sklearn.linear_model import LogisticRegression

    classes = len(held.classes)
    model = LogisticRegression(max_iter=300, C=0.1).fit(*examples(train))
    shape_C2, images = mean_shapes(train, classes), []
    for index in range(len(held)):
        features, box_N4 = windows(held[index]["image"])
        score_NC = model.predict_proba(features)[:, 1:]
        parts = []
        for number in range(classes):
            best = np.argsort(-score_NC[:, number])[:KEPT]
            shaped = np.concatenate([box_N4[best, :2], box_N4[best, 2:] * shape_C2[number]], axis=1)
            corner, score = corners(shaped), score_NC[best, number]
            kept = without_doubles(corner, score)
            parts.append((corner[kept], np.full(len(kept), number), score[kept]))
        corner, label, score = (np.concatenate(x) for x in zip(*parts, strict=True))
        best = np.argsort(-score)[:KEPT]
        images.append(Found(corner[best], label[best], score[best]))
    return images
