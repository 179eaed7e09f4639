"""One class for each row: of a text or of an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from moe_jax.config.fields import Rule, at_least
from moe_jax.data.types import NO_LABEL, Columns, DataInfo
from moe_jax.models.types import IO, RowClass
from moe_jax.nn.context import ImageBatch, TokenBatch
from moe_jax.nn.predictions import ClassLogits
from moe_jax.tasks.types import Arrays, Headline, RawBatch, Sums, real_rows

OPTIONAL = ("domain", "other_label", "share")  # columns that are read where the data has them
BINS = 15  # of confidence, for the calibration error
MAX_PAIRS = 1 << 20  # classes squared, up to which all confusions are counted


@dataclass(frozen=True, kw_only=True)
class Classification:
    """One of C classes for each row of text or each image.

    classes: C; 0: as many as the data names. label_smoothing: the share e of a target that goes to
    all classes alike, in training and in the reported cross-entropy: (1 - e) 1[c = label] + e/C
    (Szegedy et al., 1512.00567, section 7).
    """

    headlines: ClassVar = (Headline("accuracy", "max"), Headline("cross_entropy", "min"))

    classes: int = 0
    label_smoothing: float = 0.0

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "classes", "label_smoothing")
        if self.classes == 1:
            yield "classes", "must be at least 2, or 0 to follow the data"
        if self.label_smoothing >= 1:
            yield "label_smoothing", "must be below 1"

    def reads(self, columns: Columns) -> tuple[str, ...]:
        inputs = ("image",) if "image" in columns else ("tokens", "segments")
        return (*inputs, "label", *(name for name in OPTIONAL if name in columns))

    def io(self, columns: Columns) -> IO:
        if "image" in columns:
            height, width, channels = columns["image"].shape
            return IO(image=(height, width, channels), gives=RowClass(self.classes))
        return IO(length=columns["tokens"].shape[0], gives=RowClass(self.classes))

    def completed(self, info: DataInfo) -> Classification:
        return self if self.classes else replace(self, classes=len(info.classes))

    def fits(self, info: DataInfo) -> Iterator[Rule]:
        if 0 < self.classes < len(info.classes):
            yield "classes", f"must be at least the {len(info.classes)} of the data, or 0"
        if not self.classes and len(info.classes) < 2:
            yield "classes", f"the data has {len(info.classes)} classes, and it takes 2"

    def row_tasks(self, columns: Columns, domains: tuple[str, ...]) -> tuple[str, ...] | None:
        """The domains of texts; images tell of none."""
        return domains if "domain" in columns and "image" not in columns else None

    def figures(self) -> tuple[str, ...]:
        many = ("top5_accuracy",) if self.classes == 0 or self.classes > 5 else ()
        return ("cross_entropy", "accuracy", "macro_f1", "calibration_error", *many)

    def start(self, vocabulary: int, info: DataInfo) -> ClassOfRow:
        return ClassOfRow(self.classes, self.label_smoothing, info.domains, info.classes)


class ClassOfRow:
    """Sums: nats (the loss), rows, correct, top5, confusion (label, prediction), calibration by bin
    of confidence (rows, correct, confidence), and rows and correct by domain."""

    counters: ClassVar = ("rows", "rows_by_domain")
    losses: ClassVar = ("cross_entropy",)

    def __init__(
        self,
        classes: int,
        label_smoothing: float = 0.0,
        domains: tuple[str, ...] = (),
        names: tuple[str, ...] = (),
    ):
        self._C, self._smoothing = classes, label_smoothing
        self._domains = domains if len(domains) > 1 else ()
        self.names = names

    def inputs(self, raw: RawBatch) -> TokenBatch | ImageBatch:
        if "image" in raw:
            return ImageBatch(
                image_BHWC=jnp.asarray(raw["image"]), valid_B=real_rows(raw), row_B=raw["row"]
            )
        return TokenBatch.packed(raw["tokens"], raw["segments"], raw["row"], raw.get("domain"))

    def valid(self, raw: RawBatch) -> Bool[Array, "B"]:
        return jnp.asarray(raw["label"]) != NO_LABEL

    def weights(self, raw: RawBatch) -> dict[str, Float[Array, ""]]:
        """Rows with a label."""
        return {"nats": jnp.sum(self.valid(raw), dtype=jnp.int32).astype(jnp.float32)}

    def _nll(self, predictions: ClassLogits, raw: RawBatch) -> Float[Array, "B"]:
        log_prob_BC = jax.nn.log_softmax(predictions.logits_BC, axis=-1)
        of_label_B = _at(log_prob_BC, raw["label"])
        if "other_label" in raw:  # a mixture of two images
            share_B = jnp.asarray(raw["share"])
            of_label_B = share_B * of_label_B + (1 - share_B) * _at(log_prob_BC, raw["other_label"])
        smoothing = self._smoothing
        nll_B = -(1 - smoothing) * of_label_B - smoothing * jnp.mean(log_prob_BC, axis=1)
        return jnp.where(self.valid(raw), nll_B, 0)

    def token_losses(self, predictions: ClassLogits, raw: RawBatch) -> Float[Array, "B 1"]:
        """The loss of its row."""
        return self._nll(predictions, raw)[:, None]

    def rows(self, predictions: ClassLogits, raw: RawBatch) -> dict[str, Array]:
        return {}

    def sums(self, predictions: ClassLogits, raw: RawBatch) -> Sums:
        logits_BC, label_B = predictions.logits_BC, jnp.asarray(raw["label"])
        valid_B = self.valid(raw)
        best_B = jnp.argmax(logits_BC, axis=1).astype(jnp.int32)
        correct_B = valid_B & (best_B == label_B)
        above_B = jnp.sum(logits_BC > _at(logits_BC, label_B)[:, None], axis=1)
        confidence_B = jnp.max(jax.nn.softmax(logits_BC, axis=1), axis=1)
        bin_B = jnp.clip((confidence_B * BINS).astype(jnp.int32), 0, BINS - 1)
        sums = {
            "nats": jnp.sum(self._nll(predictions, raw)),
            "rows": jnp.sum(valid_B, dtype=jnp.int32),
            "correct": jnp.sum(correct_B, dtype=jnp.int32),
            "top5": jnp.sum(valid_B & (above_B < 5), dtype=jnp.int32),
            "binned": _count(bin_B, valid_B, BINS),
            "binned_correct": _count(bin_B, correct_B, BINS),
            "binned_confidence": jnp.zeros(BINS, jnp.float32)
            .at[bin_B]
            .add(jnp.where(valid_B, jax.lax.stop_gradient(confidence_B), 0)),
        }
        if self._C**2 <= MAX_PAIRS:
            pair_B = jnp.maximum(label_B, 0) * self._C + best_B
            sums["confusion"] = _count(pair_B, valid_B, self._C**2).reshape(self._C, self._C)
        if self._domains and "domain" in raw:
            domain_B, n = jnp.asarray(raw["domain"]), len(self._domains)
            sums["rows_by_domain"] = _count(domain_B, valid_B, n)
            sums["correct_by_domain"] = _count(domain_B, correct_B, n)
        return sums

    def metrics(self, sums: Arrays, rows: Arrays | None = None) -> dict[str, float]:
        """cross_entropy: nats per row. accuracy. macro_f1: mean over classes of 2 TP / (2 TP + FP
        + FN), over those that occur. top5_accuracy, with more than five classes.
        calibration_error: sum over 15 bins of confidence of share * |accuracy - confidence| (Guo et
        al., 1706.04599). domain/NAME/accuracy of each domain."""
        count = max(float(sums["rows"]), 1.0)
        metrics = {
            "cross_entropy": float(sums["nats"]) / count,
            "accuracy": float(sums["correct"]) / count,
        }
        if "confusion" in sums:
            metrics["macro_f1"] = macro_f1(np.asarray(sums["confusion"]))
        if self._C > 5:
            metrics["top5_accuracy"] = float(sums["top5"]) / count
        gap = np.abs(
            np.asarray(sums["binned_correct"], np.float64) - np.asarray(sums["binned_confidence"])
        )
        metrics["calibration_error"] = float(gap.sum() / count)
        if "rows_by_domain" in sums:
            for name, correct, n in zip(
                self._domains, sums["correct_by_domain"], sums["rows_by_domain"], strict=True
            ):
                if n:
                    metrics[f"domain/{name}/accuracy"] = float(correct) / float(n)
        return metrics


def _at(x_BC: Float[Array, "B C"], label_B: Int[Array, "B"]) -> Float[Array, "B"]:
    """The column of each row's label."""
    return jnp.take_along_axis(x_BC, jnp.maximum(jnp.asarray(label_B), 0)[:, None], axis=1)[:, 0]


def _count(index_B: Int[Array, "B"], counted_B: Bool[Array, "B"], n: int) -> Int[Array, "{n}"]:
    """How many counted rows have each of the n values."""
    return jnp.zeros(n, jnp.int32).at[index_B].add(counted_B.astype(jnp.int32), mode="drop")


def macro_f1(confusion_CC: np.ndarray) -> float:
    """Mean over the classes that occur as label or prediction; confusion: (label, prediction)."""
    right_C = np.diag(confusion_CC).astype(np.float64)
    either_C = confusion_CC.sum(axis=0) + confusion_CC.sum(axis=1)
    there_C = either_C > 0
    return float(np.mean(2 * right_C[there_C] / either_C[there_C])) if there_C.any() else 0.0
