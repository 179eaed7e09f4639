"""Average precision by hand; pycocotools says the same in tests/oracles."""

from __future__ import annotations

import numpy as np
import pytest

from moe_jax.tasks.average_precision import Found, average_precision, pairwise_iou

NONE = Found(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))


def detected(*boxes):
    """(corners, class, score) each."""
    corners, classes, scores = zip(*boxes, strict=True)
    return Found(np.array(corners, float), np.array(classes), np.array(scores, float))


def there(*boxes):
    corners, classes = zip(*boxes, strict=True)
    return Found(np.array(corners, float), np.array(classes))


A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (0, 0, 10, 6)


def test_what_is_found_exactly_is_1():
    found = average_precision([detected((A, 0, 0.9), (B, 1, 0.8))], [there((A, 0), (B, 1))], 3)
    assert found == {"average_precision": 1.0, "ap50": 1.0, "ap75": 1.0}


def test_a_false_one_before_and_a_missed_one():
    """Precision 1/2 at recall 1/2: 51 of 101 recalls are reached."""
    far = (50, 50, 60, 60)
    guesses = [detected((B, 0, 0.9), (A, 0, 0.8))]
    found = average_precision(guesses, [there((A, 0), (far, 0))], 1)
    assert found["ap50"] == pytest.approx(0.5 * 51 / 101)


def test_an_overlap_of_six_tenths_counts_up_to_that_threshold():
    found = average_precision([detected((C, 0, 0.9))], [there((A, 0))], 1)
    assert pairwise_iou(np.array([C]), np.array([A]))[0, 0] == pytest.approx(0.6)
    assert found == {"average_precision": pytest.approx(0.3), "ap50": 1.0, "ap75": 0.0}


def test_an_object_is_found_once():
    twice = [detected((A, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7))]
    found = average_precision(twice, [there((A, 0), (B, 0))], 1)
    assert found["ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_images_without_objects_or_detections():
    """A false one in an image without objects counts against precision; nothing at all is 0."""
    first = detected((A, 0, 0.5))
    found = average_precision([detected((A, 0, 0.9)), first, NONE], [NONE, there((A, 0)), NONE], 1)
    assert found["ap50"] == pytest.approx(0.5)
    assert average_precision([NONE, first], [NONE, NONE], 2)["average_precision"] == 0.0
    assert average_precision([NONE], [there((A, 1))], 2)["average_precision"] == 0.0
