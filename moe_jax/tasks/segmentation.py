"""One class for each pixel of an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from moe_jax.config.fields import Rule, at_least
from moe_jax.data.types import NO_LABEL, Columns, DataInfo
from moe_jax.models.types import IO, PixelClass
from moe_jax.nn.context import ImageBatch
from moe_jax.nn.predictions import PixelLogits
from moe_jax.tasks.types import Arrays, Headline, RawBatch, Sums, real_rows


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """One of C classes for each pixel; pixels of class -1 count nowhere.

    classes: C; 0: as many as the data names.
    """

    headlines: ClassVar = (Headline("mean_iou", "max"), Headline("cross_entropy", "min"))

    classes: int = 0

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "classes")
        if self.classes == 1:
            yield "classes", "must be at least 2, or 0 to follow the data"

    def reads(self, columns: Columns) -> tuple[str, ...]:
        return ("image", "label_map")

    def io(self, columns: Columns) -> IO:
        height, width, channels = columns["image"].shape
        return IO(image=(height, width, channels), gives=PixelClass(self.classes))

    def completed(self, info: DataInfo) -> Segmentation:
        return self if self.classes else replace(self, classes=len(info.classes))

    def fits(self, info: DataInfo) -> Iterator[Rule]:
        if 0 < self.classes < len(info.classes):
            yield "classes", f"must be at least the {len(info.classes)} of the data, or 0"
        if not self.classes and len(info.classes) < 2:
            yield "classes", f"the data has {len(info.classes)} classes, and it takes 2"

    def figures(self) -> tuple[str, ...]:
        return ("cross_entropy", "mean_iou", "pixel_accuracy")

    def start(self, vocabulary: int, info: DataInfo) -> ClassOfPixel:
        return ClassOfPixel(self.classes, info.classes)


class ClassOfPixel:
    """Sums: nats (the loss), pixels, confusion (label, prediction)."""

    counters: ClassVar = ("pixels",)
    losses: ClassVar = ("cross_entropy",)

    def __init__(self, classes: int, names: tuple[str, ...] = ()):
        self._C, self.names = classes, names

    def inputs(self, raw: RawBatch) -> ImageBatch:
        return ImageBatch(
            image_BHWC=jnp.asarray(raw["image"]),
            valid_B=real_rows(raw),
            row_B=raw["row"],
        )

    def valid(self, raw: RawBatch) -> Bool[Array, "B H W"]:
        return jnp.asarray(raw["label_map"]) != NO_LABEL

    def weights(self, raw: RawBatch) -> dict[str, Float[Array, ""]]:
        """Pixels with a label."""
        return {"nats": jnp.sum(self.valid(raw), dtype=jnp.int32).astype(jnp.float32)}

    def _nll(self, predictions: PixelLogits, raw: RawBatch) -> Float[Array, "B H W"]:
        log_prob_BHWC = jax.nn.log_softmax(predictions.logits_BHWC, axis=-1)
        label_BHW = jnp.maximum(jnp.asarray(raw["label_map"]), 0)
        of_label = jnp.take_along_axis(log_prob_BHWC, label_BHW[..., None], axis=-1)[..., 0]
        return jnp.where(self.valid(raw), -of_label, 0)

    def token_losses(self, predictions: PixelLogits, raw: RawBatch) -> Float[Array, "B S"]:
        """Of each patch, the mean over its pixels that count; 0 of tokens before them."""
        total_BS = by_patch(self._nll(predictions, raw), predictions.grid)
        count_BS = by_patch(self.valid(raw).astype(jnp.float32), predictions.grid)
        mean_BS = total_BS / jnp.maximum(count_BS, 1)
        return jnp.pad(mean_BS, ((0, 0), (predictions.ahead, 0)))

    def rows(self, predictions: PixelLogits, raw: RawBatch) -> dict[str, Array]:
        return {}

    def sums(self, predictions: PixelLogits, raw: RawBatch) -> Sums:
        valid_BHW, C = self.valid(raw), self._C
        best_BHW = jnp.argmax(predictions.logits_BHWC, axis=-1).astype(jnp.int32)
        pair = jnp.maximum(jnp.asarray(raw["label_map"]), 0) * C + best_BHW
        counts = jnp.zeros(C * C, jnp.int32)
        counts = counts.at[pair.reshape(-1)].add(valid_BHW.reshape(-1).astype(jnp.int32))
        return {
            "nats": jnp.sum(self._nll(predictions, raw)),
            "pixels": jnp.sum(valid_BHW, dtype=jnp.int32),
            "confusion": counts.reshape(C, C),
        }

    def metrics(self, sums: Arrays, rows: Arrays | None = None) -> dict[str, float]:
        """cross_entropy: nats per pixel. pixel_accuracy. mean_iou: mean over the classes that occur
        of TP / (TP + FP + FN), summed over all pixels (Everingham et al., IJCV 2015, section
        4.2.2). iou/NAME of each class that occurs."""
        pixels = max(float(sums["pixels"]), 1.0)
        confusion = np.asarray(sums["confusion"], np.float64)
        right = np.diag(confusion)
        union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
        there = union > 0
        iou = right / np.where(there, union, 1)
        metrics = {
            "cross_entropy": float(sums["nats"]) / pixels,
            "pixel_accuracy": float(right.sum()) / pixels,
            "mean_iou": float(iou[there].mean()) if there.any() else 0.0,
        }
        names = self.names if len(self.names) == self._C else map(str, range(self._C))
        return metrics | {
            f"iou/{name}": float(value)
            for name, value, occurs in zip(names, iou, there, strict=True)
            if occurs
        }


def by_patch(value_BHW: Float[Array, "B H W"], grid: tuple[int, int]) -> Float[Array, "B S"]:
    """Summed over each patch, in reading order."""
    B, H, W = value_BHW.shape
    rows, columns = grid
    cut = value_BHW.reshape(B, rows, H // rows, columns, W // columns)
    return jnp.sum(cut, axis=(2, 4)).reshape(B, rows * columns)
