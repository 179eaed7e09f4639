"""Boxes: areas and overlaps against loops in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.ops.boxes import area, corners, generalised_iou, iou


def overlaps(a, b):
    """(IoU, generalised IoU) of two boxes by their corners, as the paper's algorithm 1 has it."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    ratio = width * height / union
    return ratio, ratio - (hull - union) / hull


@pytest.fixture
def boxes():
    random = np.random.default_rng(0)
    middle, size = random.random((2, 40, 2)), random.uniform(0.05, 0.5, (2, 40, 2))
    boxes = np.concatenate([middle, size], axis=-1).astype(np.float32)
    boxes[1, :20] = boxes[0, :20] * random.uniform(0.9, 1.1, (20, 4))  # near each other
    return boxes


def test_overlaps_are_the_formula(boxes):
    a, b = (corners(jnp.asarray(x)) for x in boxes)
    pairs = zip(np.asarray(a, np.float64), np.asarray(b, np.float64), strict=True)
    wanted = np.array([overlaps(x, y) for x, y in pairs])
    np.testing.assert_allclose(iou(a, b), wanted[:, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(generalised_iou(a, b), wanted[:, 1], rtol=1e-4, atol=1e-5)
    assert wanted[:, 1].min() < -0.3 and wanted[:, 0].max() > 0.3
    np.testing.assert_allclose(area(a), boxes[0][:, 2] * boxes[0][:, 3], rtol=1e-4)
    np.testing.assert_allclose(iou(a, a), 1, rtol=1e-5)
    np.testing.assert_allclose(generalised_iou(a, a), 1, rtol=1e-5)


def test_boxes_apart_are_drawn_together():
    """The intersection has no slope there; the generalised one has."""
    far, here = jnp.array([0.8, 0.5, 0.1, 0.1]), jnp.array([0.2, 0.5, 0.1, 0.1])

    def of(overlap):
        return jax.grad(lambda box: overlap(corners(box), corners(here)))(far)

    assert not np.any(of(iou)) and float(of(generalised_iou)[0]) < 0
    empty = jnp.zeros(4)
    for overlap in (iou, generalised_iou):
        slope = jax.value_and_grad(lambda box, f=overlap: f(corners(box), corners(here)))
        value, grad = slope(empty)
        assert np.isfinite(value) and np.isfinite(grad).all()
