"""Several targets for each row of a table, binary or real."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from moe_jax.config.fields import Rule, one_of
from moe_jax.data.types import Columns, DataInfo
from moe_jax.models.types import IO, Targets
from moe_jax.nn.predictions import TargetValues
from moe_jax.tasks.of_table import TargetsByName, columns_read, table_sizes
from moe_jax.tasks.types import Arrays, Headline, RawBatch, Sums

WEIGHTINGS = ("fixed", "uncertainty")


@dataclass(frozen=True, kw_only=True)
class MultiTask:
    """One model for several columns of a table, each known of some rows or of all.

    binary: targets that are 1 or 0, with cross-entropy; real: with squared error. A target that is
    nan in a row counts nowhere.
    weighting: `fixed`, the loss is sum_k w_k L_k with `weights` in the order of binary, then real
    (none: all 1), L_k being the mean over the rows in which target k is known; or `uncertainty`:
    sum_k exp(-s_k) L_k + s_k / 2 with a learned s_k = log sigma_k^2 (of real targets L_k / 2).
    Kendall, Gal and Cipolla (1705.07115), eq. 7 and 10.
    """

    headlines: ClassVar = (Headline("auc", "max"), Headline("mean_squared_error", "min"))

    binary: tuple[str, ...] = ()
    real: tuple[str, ...] = ()
    weighting: str = "fixed"
    weights: tuple[float, ...] = ()

    def check(self) -> Iterator[Rule]:
        yield from one_of(self, WEIGHTINGS, "weighting")
        names = self.binary + self.real
        if len(set(names)) < len(names):
            yield "real", "names a target twice, or one of task.binary"
        if self.weights and self.weighting != "fixed":
            yield "weights", "must be empty: weighting = uncertainty learns them"
        elif self.weights and len(self.weights) != len(names):
            yield "weights", f"must be empty, or one for each of the {len(names)} targets"
        if any(weight < 0 for weight in self.weights):
            yield "weights", "must be at least 0"

    def reads(self, columns: Columns) -> tuple[str, ...]:
        return columns_read(columns, self.binary + self.real)

    def io(self, columns: Columns) -> IO:
        uncertain = self.weighting == "uncertainty"
        gives = Targets(binary=self.binary, real=self.real, uncertain=uncertain)
        return IO(table=table_sizes(columns), gives=gives)

    def completed(self, info: DataInfo) -> MultiTask:
        return self

    def fits(self, info: DataInfo) -> Iterator[Rule]:
        yield from ()

    def figures(self) -> tuple[str, ...]:
        found = ("auc", "cross_entropy") if self.binary else ()
        return (*found, "mean_squared_error") if self.real else found

    def start(self, vocabulary: int, info: DataInfo) -> TargetsOfRow:
        return TargetsOfRow(self.binary, self.real, self.weights)


class TargetsOfRow(TargetsByName):
    """Sums: of each target loss/NAME, weighted, its part in what is minimised; of all (T,) known
    rows, positive ones, and error: nats or squares; where variances are learned their logarithm,
    once for each known row."""

    counters: ClassVar = ("known_T", "positive_T")
    losses: ClassVar = ("target_loss",)

    def __init__(
        self, binary: tuple[str, ...], real: tuple[str, ...], weights: tuple[float, ...] = ()
    ):
        self.names, self._binary = binary + real, len(binary)
        self._weights = weights or (1.0,) * len(self.names)

    def known(self, raw: RawBatch) -> Bool[Array, "B T"]:
        return ~jnp.isnan(self.targets(raw))

    def weights(self, raw: RawBatch) -> dict[str, Float[Array, ""]]:
        """Rows in which each target is known."""
        known_T = jnp.sum(self.known(raw), axis=0, dtype=jnp.int32).astype(jnp.float32)
        return {f"loss/{name}": known_T[k] for k, name in enumerate(self.names)}

    def errors(self, predictions: TargetValues, raw: RawBatch) -> Float[Array, "B T"]:
        """-log sigmoid(+-logit) of binary targets, (value - target)^2 of real ones; 0 of unknown
        ones."""
        known_BT, value_BT = self.known(raw), predictions.value_BT
        wanted_BT = jnp.where(known_BT, self.targets(raw), 0)
        nats_BT = jax.nn.softplus(jnp.where(wanted_BT > 0.5, -1.0, 1.0) * value_BT)
        is_binary_T = jnp.arange(len(self.names), dtype=jnp.int32) < self._binary
        errors_BT = jnp.where(is_binary_T[None], nats_BT, jnp.square(value_BT - wanted_BT))
        return jnp.where(known_BT, errors_BT, 0)

    def token_losses(self, predictions: TargetValues, raw: RawBatch) -> Float[Array, "B 1"]:
        """The error of its row, mean over the targets that are known."""
        known_B = jnp.sum(self.known(raw), axis=1, dtype=jnp.int32).astype(jnp.float32)
        total_B = jnp.sum(self.errors(predictions, raw), axis=1)
        return (total_B / jnp.maximum(known_B, 1))[:, None]

    def rows(self, predictions: TargetValues, raw: RawBatch) -> dict[str, Array]:
        """What the area under a curve needs: it is no function of sums."""
        return {"value": predictions.value_BT, "target": self.targets(raw)}

    def sums(self, predictions: TargetValues, raw: RawBatch) -> Sums:
        known_BT, error_BT = self.known(raw), self.errors(predictions, raw)
        known_T = jnp.sum(known_BT, axis=0, dtype=jnp.int32)
        error_T, count_T = jnp.sum(error_BT, axis=0), known_T.astype(jnp.float32)
        positive_BT = known_BT & (self.targets(raw) > 0.5)
        loss_T, learned = jnp.asarray(self._weights, jnp.float32) * error_T, {}
        if predictions.log_variance_T is not None:
            s_T = predictions.log_variance_T
            half_T = jnp.where(jnp.arange(len(self.names)) < self._binary, 1.0, 0.5)
            loss_T = half_T * jnp.exp(-s_T) * error_T + count_T * s_T / 2
            learned = {"log_variance_T": jax.lax.stop_gradient(s_T) * count_T}
        return {
            **{f"loss/{name}": loss_T[k] for k, name in enumerate(self.names)},
            "error_T": error_T,
            "known_T": known_T,
            "positive_T": jnp.sum(positive_BT, axis=0, dtype=jnp.int32),
            **learned,
        }

    def metrics(self, sums: Arrays, rows: Arrays | None = None) -> dict[str, float]:
        """target_loss: what is minimised, without routing losses. cross_entropy/NAME: nats of each
        binary target, mean_squared_error/NAME and rmse/NAME of each real one, and their means over
        targets; weight/NAME: exp(-s_k), where it is learned. Of rows auc/NAME of each binary target
        that has both outcomes, and auc, their mean (`area_under_curve`)."""
        known = np.maximum(np.asarray(sums["known_T"], np.float64), 1)
        error = np.asarray(sums["error_T"], np.float64) / known
        loss = [float(sums[f"loss/{name}"]) / known[k] for k, name in enumerate(self.names)]
        there = np.asarray(sums["known_T"]) > 0
        metrics = {"target_loss": float(np.sum(loss))}
        found: dict[str, list[float]] = {}
        for k in np.flatnonzero(there):
            kind = "cross_entropy" if k < self._binary else "mean_squared_error"
            metrics[f"{kind}/{self.names[k]}"] = float(error[k])
            found.setdefault(kind, []).append(float(error[k]))
            if kind != "cross_entropy":
                metrics[f"rmse/{self.names[k]}"] = float(np.sqrt(error[k]))
            if "log_variance_T" in sums:
                s = float(sums["log_variance_T"][k]) / known[k]
                metrics[f"weight/{self.names[k]}"] = float(np.exp(-s))
        metrics |= {kind: float(np.mean(values)) for kind, values in found.items()}
        return metrics | (self._areas(rows) if rows else {})

    def _areas(self, rows: Arrays) -> dict[str, float]:
        found = {}
        for k, name in enumerate(self.names[: self._binary]):
            target = np.asarray(rows["target"])[:, k]
            known = ~np.isnan(target)
            area = area_under_curve(np.asarray(rows["value"])[known, k], target[known] > 0.5)
            if not np.isnan(area):
                found[f"auc/{name}"] = area
        return {**found, "auc": float(np.mean(list(found.values())))} if found else {}


def area_under_curve(score_N: np.ndarray, positive_N: np.ndarray) -> float:
    """The area under the ROC curve: the share of (positive, other) pairs in which the positive one
    has the larger score, equal scores as a half (Mann and Whitney). nan where either is absent."""
    positive = int(positive_N.sum())
    others = len(positive_N) - positive
    if not positive or not others:
        return float("nan")
    _, place, count = np.unique(score_N, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2  # of equal scores the mean of theirs, from 1
    above = rank[place][positive_N].sum() - positive * (positive + 1) / 2
    return float(above / (positive * others))
