"""Several labels for each row: of a text or of an image."""

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
from moe_jax.models.types import IO, RowLabels
from moe_jax.nn.context import ImageBatch, TokenBatch
from moe_jax.nn.predictions import LabelLogits
from moe_jax.tasks.types import Arrays, Headline, RawBatch, Sums, real_rows


@dataclass(frozen=True, kw_only=True)
class Tagging:
    """Which of C labels each row of text, or each image, has.

    classes: C; 0: as many as the data names. The loss is the binary cross-entropy of each label,
    mean over rows and labels.
    """

    headlines: ClassVar = (Headline("mean_average_precision", "max"), Headline("micro_f1", "max"))

    classes: int = 0

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "classes")

    def reads(self, columns: Columns) -> tuple[str, ...]:
        inputs = ("image",) if "image" in columns else ("tokens", "segments")
        return (*inputs, "labels")

    def io(self, columns: Columns) -> IO:
        if "image" in columns:
            height, width, channels = columns["image"].shape
            return IO(image=(height, width, channels), gives=RowLabels(self.classes))
        return IO(length=columns["tokens"].shape[0], gives=RowLabels(self.classes))

    def completed(self, info: DataInfo) -> Tagging:
        return self if self.classes else replace(self, classes=len(info.classes))

    def fits(self, info: DataInfo) -> Iterator[Rule]:
        if self.classes and self.classes != len(info.classes):
            yield "classes", f"must be the {len(info.classes)} of the data, or 0"
        if not self.classes and not info.classes:
            yield "classes", "the data names no labels"

    def figures(self) -> tuple[str, ...]:
        return ("cross_entropy", "micro_f1", "macro_f1", "mean_average_precision")

    def start(self, vocabulary: int, info: DataInfo) -> LabelsOfRow:
        return LabelsOfRow(self.classes)


class LabelsOfRow:
    """Sums: nats (the loss), decisions (rows times labels), rows, and by label right, told and
    there: true positives, positives of the model, positives of the data."""

    counters: ClassVar = ("decisions", "rows", "there")
    losses: ClassVar = ("cross_entropy",)

    def __init__(self, classes: int):
        self._C = classes

    def inputs(self, raw: RawBatch) -> TokenBatch | ImageBatch:
        if "image" in raw:
            return ImageBatch(
                image_BHWC=jnp.asarray(raw["image"]),
                valid_B=real_rows(raw),
                row_B=raw["row"],
            )
        return TokenBatch.packed(raw["tokens"], raw["segments"], raw["row"])

    def valid(self, raw: RawBatch) -> Bool[Array, "B C"]:
        return jnp.asarray(raw["labels"]) != NO_LABEL

    def weights(self, raw: RawBatch) -> dict[str, Float[Array, ""]]:
        """Labels that are known, of all rows."""
        return {"nats": jnp.sum(self.valid(raw), dtype=jnp.int32).astype(jnp.float32)}

    def _nll(self, predictions: LabelLogits, raw: RawBatch) -> Float[Array, "B C"]:
        """-log sigmoid(+-logit)"""
        sign_BC = jnp.where(jnp.asarray(raw["labels"]) == 1, -1.0, 1.0)
        nll_BC = jax.nn.softplus(sign_BC * predictions.logits_BC)
        return jnp.where(self.valid(raw), nll_BC, 0)

    def token_losses(self, predictions: LabelLogits, raw: RawBatch) -> Float[Array, "B 1"]:
        """The loss of its row, mean over labels."""
        known_B = jnp.sum(self.valid(raw), axis=1, dtype=jnp.int32).astype(jnp.float32)
        known_B = jnp.maximum(known_B, 1)
        return (jnp.sum(self._nll(predictions, raw), axis=1) / known_B)[:, None]

    def rows(self, predictions: LabelLogits, raw: RawBatch) -> dict[str, Array]:
        """What average precision needs: it is no function of sums."""
        return {"logits": predictions.logits_BC, "labels": jnp.asarray(raw["labels"])}

    def sums(self, predictions: LabelLogits, raw: RawBatch) -> Sums:
        valid_BC = self.valid(raw)
        told_BC = valid_BC & (predictions.logits_BC > 0)
        there_BC = valid_BC & (jnp.asarray(raw["labels"]) == 1)

        def by_label(counted_BC: Bool[Array, "B C"]) -> Array:
            return jnp.sum(counted_BC, axis=0, dtype=jnp.int32)

        return {
            "nats": jnp.sum(self._nll(predictions, raw)),
            "decisions": jnp.sum(valid_BC, dtype=jnp.int32),
            "rows": jnp.sum(jnp.any(valid_BC, axis=1), dtype=jnp.int32),
            "right": by_label(told_BC & there_BC),
            "told": by_label(told_BC),
            "there": by_label(there_BC),
        }

    def metrics(self, sums: Arrays, rows: Arrays | None = None) -> dict[str, float]:
        """cross_entropy: nats per decision. micro_f1: 2 TP / (2 TP + FP + FN) of all decisions at
        probability 1/2; macro_f1: mean over labels that occur or are told. Of rows
        mean_average_precision: mean over labels that occur of the average precision
        (`average_precision`)."""
        right, told, there = (
            np.asarray(sums[name], np.float64) for name in ("right", "told", "there")
        )
        metrics = {
            "cross_entropy": float(sums["nats"]) / max(float(sums["decisions"]), 1.0),
            "micro_f1": float(2 * right.sum() / max((told + there).sum(), 1)),
        }
        either = (told + there) > 0
        f1 = 2 * right[either] / (told + there)[either]
        metrics["macro_f1"] = float(f1.mean()) if either.any() else 0.0
        if rows:
            found = [
                average_precision(logits[known], labels[known] == 1)
                for logits, labels in zip(
                    np.asarray(rows["logits"]).T, np.asarray(rows["labels"]).T, strict=True
                )
                if (labels == 1).any()
                for known in [labels != NO_LABEL]
            ]
            metrics["mean_average_precision"] = float(np.mean(found)) if found else 0.0
        return metrics


def average_precision(score_N: np.ndarray, there_N: np.ndarray) -> float:
    """sum_n (R_n - R_(n-1)) P_n over thresholds from the highest score down, equal scores at once:
    without interpolation. nan where nothing is there."""
    order = np.argsort(-score_N, kind="stable")
    score, there = score_N[order], there_N[order].astype(np.float64)
    last_of_equal = np.append(score[1:] != score[:-1], True)
    right, told = np.cumsum(there)[last_of_equal], np.flatnonzero(last_of_equal) + 1
    if not there.any():
        return float("nan")
    recall = np.concatenate([[0.0], right / there.sum()])
    return float(np.sum(np.diff(recall) * right / told))
