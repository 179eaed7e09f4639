"""Average precision of drawn detections is pycocotools'."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from moe_jax.tasks.average_precision import Found, average_precision
from moe_jax.tasks.detection import LOSSES, Detection, SetOfObjects

CLASSES = 4


def drawn(seed: int) -> tuple[list[Found], list[Found]]:
    """Objects of 25 images, and detections: some of them moved, some doubled, some anywhere, with
    scores that are often equal; images without either are among them."""
    random = np.random.default_rng(seed)
    found, real = [], []
    for image in range(25):
        n = 0 if image % 6 == 0 else int(random.integers(1, 9))
        low, size = random.uniform(0, 300, (n, 2)), random.uniform(5, 120, (n, 2))
        corners = np.concatenate([low, low + size], axis=1)
        classes = random.integers(0, CLASSES - 1, n)  # of the last class there is none
        real.append(Found(corners, classes))
        kept = random.random(n) < 0.8
        moved = corners[kept] + random.normal(0, 8, (kept.sum(), 4))
        false = random.uniform(0, 200, (3, 2))
        boxes = np.concatenate([moved, moved[:2] + 3, np.concatenate([false, false + 50], axis=1)])
        names = np.concatenate([classes[kept], classes[kept][:2], random.integers(0, CLASSES, 3)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = np.round(random.random(len(boxes)), 1)
        if image % 7 == 3:
            boxes, names, scores = boxes[:0], names[:0], scores[:0]
        found.append(Found(boxes, names, scores))
    return found, real


def by_pycocotools(found: list[Found], real: list[Found]) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def box(corner: np.ndarray) -> list[float]:
        return [*corner[:2].tolist(), *(corner[2:] - corner[:2]).tolist()]

    truth = COCO()
    annotations = [
        {"image_id": image, "category_id": int(number), "bbox": box(corner), "iscrowd": 0,
         "area": float(np.prod(corner[2:] - corner[:2]))}
        for image, one in enumerate(real)
        for corner, number in zip(one.corner_N4, one.class_N, strict=True)
    ]  # fmt: skip
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    truth.dataset = {
        "images": [{"id": image} for image in range(len(real))],
        "annotations": annotations,
        "categories": [{"id": number} for number in range(CLASSES)],
    }
    detections = [
        {"image_id": image, "category_id": int(number), "bbox": box(corner), "score": float(score)}
        for image, one in enumerate(found)
        for corner, number, score in zip(one.corner_N4, one.class_N, one.score_N, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_pycocotools(seed):
    found, real = drawn(seed)
    ours = average_precision(found, real, CLASSES)
    wanted = by_pycocotools(found, real)
    assert list(ours.values()) == pytest.approx(wanted, abs=1e-9)
    assert 0.03 < ours["average_precision"] < 0.9


def padded(images: list[Found], rows: int) -> dict[str, np.ndarray]:
    """As a task gathers them: (x, y, w, h), classes and scores of so many boxes an image; what
    fills up comes last, as none or as the worst of detections, far away."""
    box = np.full((len(images), rows, 4), 9e5)
    box[..., 2:] = 1.0
    number = np.full((len(images), rows), -1)
    score = np.full((len(images), rows), -1.0)
    for image, one in enumerate(images):
        n = len(one.class_N)
        low, high = one.corner_N4[:, :2], one.corner_N4[:, 2:]
        box[image, :n] = np.concatenate([(low + high) / 2, high - low], axis=1)
        number[image, :n] = one.class_N
        score[image, :n] = 0 if one.score_N is None else one.score_N
    return {"box": box, "class": number, "score": score}


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_of_data_sets_is_pycocotools_of_their_own_images(seed):
    """Classes of several sets in one run: of each set those of which it has an object."""
    found, real = drawn(seed)
    domain = np.arange(len(real)) % 3  # the third set has one class of the first
    classes = (lambda n: n % 2, lambda n: 0 * n + 2, lambda n: 0 * n)
    real = [
        Found(one.corner_N4, classes[number](one.class_N))
        for one, number in zip(real, domain, strict=True)
    ]
    guessed, there = padded(found, 20), padded(real, 20)
    rows = {
        "detected_box": guessed["box"],
        "detected_class": np.maximum(guessed["class"], 0),
        "score": guessed["score"],
        "box": there["box"],
        "class": there["class"],
        "domain": domain,
    }
    sums = {**dict.fromkeys(LOSSES, np.zeros(())), "objects": np.ones(())}
    names = ("first", "second", "third")
    metrics = SetOfObjects(Detection(classes=CLASSES), (), names).metrics(sums, rows)
    for number, name in enumerate(names):
        own = [n for n in range(len(real)) if domain[n] == number]
        wanted = by_pycocotools([found[n] for n in own], [real[n] for n in own])
        assert metrics[f"domain/{name}/average_precision"] == pytest.approx(wanted[0], abs=1e-9)
    assert metrics["average_precision"] == pytest.approx(by_pycocotools(found, real)[0], abs=1e-9)
