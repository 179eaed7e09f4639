"""Boxes in an image: corners, intersection over union, and its generalisation.

A box is (x, y, w, h), its middle and its size, as shares of the image's width and height; or its
corners (left, top, right, bottom).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

SMALLEST = 1e-9  # what an empty area is divided by


def corners(box: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """(x, y, w, h) -> (left, top, right, bottom)."""
    middle, half = box[..., :2], box[..., 2:] / 2
    return jnp.concatenate([middle - half, middle + half], axis=-1)


def area(corner: Float[Array, "*B 4"]) -> Float[Array, "*B"]:
    """Of boxes by their corners; 0 where right is left of left."""
    size = jnp.maximum(corner[..., 2:] - corner[..., :2], 0)
    return size[..., 0] * size[..., 1]


def iou(a: Float[Array, "*#B 4"], b: Float[Array, "*#B 4"]) -> Float[Array, "..."]:
    """Intersection over union of boxes by their corners, pair by pair (with broadcast axes of
    size 1)."""
    intersection, union = _areas(a, b)
    return intersection / jnp.maximum(union, SMALLEST)


def generalised_iou(a: Float[Array, "*#B 4"], b: Float[Array, "*#B 4"]) -> Float[Array, "..."]:
    """IoU - (hull - union) / hull, hull the smallest box around both: from -1, far apart, to 1,
    equal (Rezatofighi et al., 1902.09630, algorithm 1). Its gradient tells boxes without
    intersection where to go."""
    intersection, union = _areas(a, b)
    least = jnp.minimum(a[..., :2], b[..., :2])
    most = jnp.maximum(a[..., 2:], b[..., 2:])
    hull = area(jnp.concatenate([least, most], axis=-1))
    ratio = intersection / jnp.maximum(union, SMALLEST)
    return ratio - (hull - union) / jnp.maximum(hull, SMALLEST)


def _areas(a: Float[Array, "*#B 4"], b: Float[Array, "*#B 4"]) -> tuple[Array, Array]:
    """Of intersection and union."""
    low = jnp.maximum(a[..., :2], b[..., :2])
    high = jnp.minimum(a[..., 2:], b[..., 2:])
    intersection = area(jnp.concatenate([low, high], axis=-1))
    return intersection, area(a) + area(b) - intersection
