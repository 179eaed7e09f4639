"""The objects of an image: a class and a box for each."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from moe_jax.config.fields import Rule, at_least, at_most
from moe_jax.data.types import NO_LABEL, Columns, DataInfo
from moe_jax.models.types import IO, ObjectBoxes
from moe_jax.nn.context import ImageBatch
from moe_jax.nn.predictions import BoxPredictions
from moe_jax.ops.boxes import corners, generalised_iou
from moe_jax.ops.matching import matched
from moe_jax.tasks.average_precision import (
    MAX_DETECTIONS,
    Found,
    mean_precision,
    precision_by_class,
)
from moe_jax.tasks.types import Arrays, Headline, RawBatch, Sums, real_rows

LOSSES = ("class_loss", "box_loss", "giou_loss")
MIN_MISSING = 1e-8  # of 1 - p: a power of it has no infinite gradient


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A set of objects, as DETR learns it (Carion et al., 2005.12872): predictions are matched with
    objects one to one at the least cost, and trained to be what they are matched with.

    classes: C; 0: as many as the data names. class_weight, box_weight, giou_weight: of the loss and
    of the cost of a match, for the class, for |box - box|_1 and for 1 - generalised IoU. Classes
    have a sigmoid each and the focal loss, its alpha and gamma: as Deformable DETR (2010.04159)
    and DAB-DETR (2201.12329) have it, and not a softmax with one more class for "none", since no
    weight against the many predictions without an object is to be found and scores of several
    classes do not take from each other. Every layer that predicts has the loss.

    copies: so often an object stands in the matching of all such layers but the last, whose
    earlier ones so get more predictions to train; their loss is divided by it. One-to-many
    matching in the earlier layers, the hybrid layers of H-DETR (2207.13080, section 3).
    """

    headlines: ClassVar = (Headline("average_precision", "max"), Headline("detection_loss", "min"))

    classes: int = 0
    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    copies: int = 1

    def check(self) -> Iterator[Rule]:
        weights = ("class_weight", "box_weight", "giou_weight")
        yield from at_least(self, 0, "classes", "alpha", "gamma", *weights)
        yield from at_most(self, 1, "alpha")
        yield from at_least(self, 1, "copies")

    def reads(self, columns: Columns) -> tuple[str, ...]:
        domain = ("domain",) if "domain" in columns else ()
        return ("image", "boxes", "classes", "objects", *domain)

    def io(self, columns: Columns) -> IO:
        height, width, channels = columns["image"].shape
        objects = columns["classes"].shape[0] * self.copies
        return IO(image=(height, width, channels), gives=ObjectBoxes(self.classes, objects))

    def completed(self, info: DataInfo) -> Detection:
        return self if self.classes else replace(self, classes=len(info.classes))

    def fits(self, info: DataInfo) -> Iterator[Rule]:
        if 0 < self.classes < len(info.classes):
            yield "classes", f"must be at least the {len(info.classes)} of the data, or 0"
        if not self.classes and not info.classes:
            yield "classes", "the data names no class, and it takes 1"

    def row_tasks(self, columns: Columns, domains: tuple[str, ...]) -> tuple[str, ...] | None:
        """The domains: data sets of a mixture, or what a set has (worlds, languages)."""
        return domains if "domain" in columns else None

    def figures(self) -> tuple[str, ...]:
        return ("average_precision", "ap50", "ap75", "detection_loss", *LOSSES)

    def start(self, vocabulary: int, info: DataInfo) -> SetOfObjects:
        return SetOfObjects(self, info.classes, info.domains)


class SetOfObjects:
    """Sums: of each loss over all layers, times its weight; rows and objects."""

    counters: ClassVar = ("rows", "objects")
    losses: ClassVar = LOSSES

    def __init__(self, task: Detection, names: tuple[str, ...] = (), domains: tuple[str, ...] = ()):
        self._task, self.names = task, names
        self._domains = domains if len(domains) > 1 else ()

    def inputs(self, raw: RawBatch) -> ImageBatch:
        return ImageBatch(
            image_BHWC=jnp.asarray(raw["image"]),
            valid_B=real_rows(raw),
            row_B=raw["row"],
            task_B=raw.get("domain"),
        )

    def valid(self, raw: RawBatch) -> Bool[Array, "B"]:
        """An image without objects is one too."""
        return jnp.asarray(raw["objects"]) != NO_LABEL

    def _there(self, raw: RawBatch) -> Bool[Array, "B N"]:
        return jnp.asarray(raw["classes"]) != NO_LABEL

    def weights(self, raw: RawBatch) -> dict[str, Float[Array, ""]]:
        """Objects, for each loss."""
        objects = jnp.sum(self._there(raw), dtype=jnp.int32).astype(jnp.float32)
        return dict.fromkeys(LOSSES, objects)

    def matches(self, predictions: BoxPredictions, raw: RawBatch) -> Int[Array, "B N"]:
        """Of each object the last layer's prediction that it is matched with; Q of padding."""
        return self._matched(self._compared(predictions, raw)[-1])[:, -1]

    def _compared(self, predictions: BoxPredictions, raw: RawBatch) -> list[Compared]:
        """What layers predict, and the objects as often as they stand in the matching: all layers
        at once, or, where the last one has fewer copies, the earlier ones and the last."""
        L, copies = predictions.logits_BLQC.shape[1], self._task.copies
        parts = [(0, L, 1)] if copies == 1 or L == 1 else [(0, L - 1, copies), (L - 1, L, 1)]
        return [
            Compared(
                logits_BLQC=predictions.logits_BLQC[:, first:end],
                box_BLQ4=predictions.box_BLQ4[:, first:end],
                true_BLN4=jnp.tile(jnp.asarray(raw["boxes"])[:, None], (1, end - first, times, 1)),
                class_BLN=jnp.tile(jnp.asarray(raw["classes"])[:, None], (1, end - first, times)),
                copies=times,
            )
            for first, end, times in parts
        ]

    def _matched(self, both: Compared) -> Int[Array, "B L N"]:
        task, logits = self._task, both.logits_BLQC
        # What the loss of a class rises by where the prediction is made responsible for it.
        cost = self._focal(logits, jnp.asarray(True)) - self._focal(logits, jnp.asarray(False))
        place_BL1N = jnp.maximum(both.class_BLN, 0)[:, :, None]
        class_BLQN = jnp.take_along_axis(cost, place_BL1N, axis=3)
        distance_BLQN, overlap_BLQN = compared(
            both.box_BLQ4[:, :, :, None], both.true_BLN4[:, :, None]
        )
        cost_BLQN = (
            task.class_weight * class_BLQN
            + task.box_weight * distance_BLQN
            - task.giou_weight * overlap_BLQN
        )
        return matched(cost_BLQN, both.class_BLN != NO_LABEL)

    def _focal(self, logits: Float[Array, "*B"], there: Bool[Array, "*B"]) -> Float[Array, "*B"]:
        """-a (1 - p)^g log p of what is there, else -(1 - a) p^g log (1 - p), p = sigmoid(logit)
        (Lin et al., 1708.02002, equation 5)."""
        alpha, gamma = self._task.alpha, self._task.gamma
        signed = jnp.where(there, logits, -logits)
        share = jnp.where(there, jnp.float32(alpha), jnp.float32(1 - alpha))
        missing = jnp.maximum(jax.nn.sigmoid(-signed), MIN_MISSING)
        return share * missing**gamma * jax.nn.softplus(-signed)

    def _losses(self, predictions: BoxPredictions, raw: RawBatch) -> dict[str, Float[Array, "B"]]:
        """Of each row, added over the layers, times their weights."""
        parts = [self._of_layers(both) for both in self._compared(predictions, raw)]
        valid_B = self.valid(raw)
        return {
            name: jnp.where(valid_B, functools.reduce(jnp.add, [part[name] for part in parts]), 0)
            for name in LOSSES
        }

    def _of_layers(self, both: Compared) -> dict[str, Float[Array, "B"]]:
        task, match_BLN = self._task, self._matched(both)
        B, L, Q, C = both.logits_BLQC.shape
        there_BLN = both.class_BLN != NO_LABEL
        # Predictions of no object go to row Q, which is cut off.
        row_B11, layer_1L1 = jnp.ogrid[:B, :L, :1][:2]
        wanted = jnp.zeros((B, L, Q + 1, C), bool)
        wanted = wanted.at[row_B11, layer_1L1, match_BLN, jnp.maximum(both.class_BLN, 0)].set(True)
        place_BLN1 = jnp.minimum(match_BLN, Q - 1)[..., None]
        own_BLN4 = jnp.take_along_axis(both.box_BLQ4, place_BLN1, axis=2)
        # Padding has an empty box; compared with itself a box has no gradient that is no number.
        true_BLN4 = jnp.where(there_BLN[..., None], both.true_BLN4, jax.lax.stop_gradient(own_BLN4))
        distance_BLN, overlap_BLN = compared(own_BLN4, true_BLN4)
        of_classes = self._focal(both.logits_BLQC, wanted[:, :, :Q])

        def of_pairs(x_BLN: Array) -> Array:
            return jnp.sum(jnp.where(there_BLN, x_BLN, 0), axis=(1, 2))

        sums = {
            "class_loss": task.class_weight * jnp.sum(of_classes, axis=(1, 2, 3)),
            "box_loss": task.box_weight * of_pairs(distance_BLN),
            "giou_loss": task.giou_weight * of_pairs(1 - overlap_BLN),
        }
        return {name: value / both.copies for name, value in sums.items()}

    def sums(self, predictions: BoxPredictions, raw: RawBatch) -> Sums:
        losses = self._losses(predictions, raw)
        return {
            **{name: jnp.sum(loss_B) for name, loss_B in losses.items()},
            "rows": jnp.sum(self.valid(raw), dtype=jnp.int32),
            "objects": jnp.sum(self._there(raw), dtype=jnp.int32),
        }

    def token_losses(self, predictions: BoxPredictions, raw: RawBatch) -> Float[Array, "B 1"]:
        """The loss of its row, for each of its objects."""
        count_B = jnp.sum(self._there(raw), axis=1, dtype=jnp.int32).astype(jnp.float32)
        losses = self._losses(predictions, raw)
        total_B = losses["class_loss"] + losses["box_loss"] + losses["giou_loss"]
        return (total_B / jnp.maximum(count_B, 1))[:, None]

    def rows(self, predictions: BoxPredictions, raw: RawBatch) -> dict[str, Array]:
        """The best detections of the last layer, and the objects: what average precision needs."""
        box_BK4, class_BK, score_BK = detections(predictions)
        domain = {"domain": jnp.asarray(raw["domain"])} if self._domains and "domain" in raw else {}
        return {
            "detected_box": box_BK4,
            "detected_class": class_BK,
            "score": score_BK,
            "box": jnp.asarray(raw["boxes"]),
            "class": jnp.asarray(raw["classes"]),
            **domain,
        }

    def metrics(self, sums: Arrays, rows: Arrays | None = None) -> dict[str, float]:
        """class_loss, box_loss, giou_loss: for each object, times their weights, added over the
        layers; detection_loss: their sum. Of rows average_precision, ap50, ap75 as COCO has them
        (tasks/average_precision.py), ap/NAME of each class that occurs, and
        domain/NAME/average_precision."""
        objects = max(float(sums["objects"]), 1.0)
        losses = {name: float(sums[name]) / objects for name in LOSSES}
        metrics = {"detection_loss": sum(losses.values()), **losses}
        if not rows:
            return metrics
        detected, there = _images(rows)
        by_class = precision_by_class(detected, there, self._task.classes)
        metrics |= mean_precision(by_class)
        for number, precision_T in by_class.items():
            name = self.names[number] if number < len(self.names) else str(number)
            metrics[f"ap/{name}"] = float(precision_T.mean())
        for number, name in enumerate(self._domains if "domain" in rows else ()):
            own = np.flatnonzero(np.asarray(rows["domain"]) == number)
            some = [[images[row] for row in own] for images in (detected, there)]
            found = precision_by_class(some[0], some[1], self._task.classes)
            if found:
                precision = mean_precision(found)["average_precision"]
                metrics[f"domain/{name}/average_precision"] = precision
        return metrics


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What layers predict, and the objects of the same images, `copies` of each."""

    logits_BLQC: Float[Array, "B L Q C"]
    box_BLQ4: Float[Array, "B L Q 4"]
    true_BLN4: Float[Array, "B L N 4"]
    class_BLN: Int[Array, "B L N"]
    copies: int


def compared(
    a: Float[Array, "*B 4"], b: Float[Array, "*B 4"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """|a - b|_1 and the generalised IoU of boxes (x, y, w, h), with broadcast axes of size 1."""
    return jnp.sum(jnp.abs(a - b), axis=-1), generalised_iou(corners(a), corners(b))


def detections(
    predictions: BoxPredictions,
) -> tuple[Float[Array, "B K 4"], Int[Array, "B K"], Float[Array, "B K"]]:
    """The last layer's boxes, classes and scores, best first: up to 100 pairs of a prediction and a
    class, as Deformable DETR counts them; a prediction may stand for several classes."""
    logits_BQC, box_BQ4 = predictions.logits_BLQC[:, -1], predictions.box_BLQ4[:, -1]
    B, Q, C = logits_BQC.shape
    best_BK, pair_BK = jax.lax.top_k(logits_BQC.reshape(B, Q * C), min(MAX_DETECTIONS, Q * C))
    box_BK4 = jnp.take_along_axis(box_BQ4, (pair_BK // C)[:, :, None], axis=1)
    return box_BK4, pair_BK % C, jax.nn.sigmoid(best_BK)


def _images(rows: Arrays) -> tuple[list[Found], list[Found]]:
    """Detections and objects of each image."""
    given = {name: np.asarray(value) for name, value in rows.items()}
    corner_BK4, corner_BN4 = (
        np.concatenate([box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2], axis=-1)
        for box in (given["detected_box"], given["box"])
    )
    detected = [
        Found(corner, number, score)
        for corner, number, score in zip(
            corner_BK4, given["detected_class"], given["score"], strict=True
        )
    ]
    there = [
        Found(corner[number != NO_LABEL], number[number != NO_LABEL])
        for corner, number in zip(corner_BN4, given["class"], strict=True)
    ]
    return detected, there
