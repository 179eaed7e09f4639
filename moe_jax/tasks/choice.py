"""A choice among alternatives, of which each row has some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from moe_jax.config.fields import Rule
from moe_jax.data.types import Columns, DataInfo
from moe_jax.models.types import IO, Targets
from moe_jax.nn.predictions import TargetValues
from moe_jax.tasks.of_table import TargetsByName, columns_read, table_sizes
from moe_jax.tasks.types import Arrays, Headline, RawBatch, Sums

LEAST = -1e30  # the utility of what cannot be chosen


@dataclass(frozen=True, kw_only=True)
class DiscreteChoice:
    """What somebody chooses of a few alternatives: p_j = exp(V_j) / sum_i exp(V_i) over those that
    are available, with a utility V_j of each by the model. Linear utilities are the multinomial
    logit of McFadden (1974).

    among: the alternatives, columns of the data: 1 of the one that was chosen, 0 of others, nan
    where one was not available. A row in which not exactly one is chosen counts nowhere.
    """

    headlines: ClassVar = (Headline("cross_entropy", "min"), Headline("accuracy", "max"))

    among: tuple[str, ...] = ()

    def check(self) -> Iterator[Rule]:
        if len(self.among) < 2:
            yield "among", "must name at least two alternatives, columns of the data"
        if len(set(self.among)) < len(self.among):
            yield "among", "names an alternative twice"

    def reads(self, columns: Columns) -> tuple[str, ...]:
        return columns_read(columns, self.among)

    def io(self, columns: Columns) -> IO:
        return IO(table=table_sizes(columns), gives=Targets(real=self.among))

    def completed(self, info: DataInfo) -> DiscreteChoice:
        return self

    def fits(self, info: DataInfo) -> Iterator[Rule]:
        yield from ()

    def figures(self) -> tuple[str, ...]:
        return ("cross_entropy", "accuracy", "rho_squared")

    def start(self, vocabulary: int, info: DataInfo) -> ChoiceOfRow:
        return ChoiceOfRow(self.among)


class ChoiceOfRow(TargetsByName):
    """Sums: nats (the loss), choices; right ones, what an equal chance of all that is available
    would lose (`equal`), and by alternative how often it was chosen (`chosen_A`) and the sum of its
    probabilities (`expected_A`)."""

    counters: ClassVar = ("choices", "chosen_A")
    losses: ClassVar = ("cross_entropy",)

    def __init__(self, among: tuple[str, ...]):
        self.names = among

    def counts(self, raw: RawBatch) -> Bool[Array, "B"]:
        """Of one choice."""
        return jnp.sum(self.targets(raw) > 0.5, axis=1, dtype=jnp.int32) == 1

    def weights(self, raw: RawBatch) -> dict[str, Float[Array, ""]]:
        """Choices."""
        return {"nats": jnp.sum(self.counts(raw), dtype=jnp.int32).astype(jnp.float32)}

    def log_probabilities(self, predictions: TargetValues, raw: RawBatch) -> Float[Array, "B A"]:
        """Very small of what is not available."""
        available_BA = ~jnp.isnan(self.targets(raw))
        return jax.nn.log_softmax(jnp.where(available_BA, predictions.value_BT, LEAST), axis=1)

    def token_losses(self, predictions: TargetValues, raw: RawBatch) -> Float[Array, "B 1"]:
        """-log p of what was chosen, 0 where no choice is known."""
        log_p_BA, is_it_BA = self.log_probabilities(predictions, raw), self.targets(raw) > 0.5
        nats_B = -jnp.sum(jnp.where(is_it_BA, log_p_BA, 0), axis=1)
        return jnp.where(self.counts(raw), nats_B, 0)[:, None]

    def rows(self, predictions: TargetValues, raw: RawBatch) -> dict[str, Array]:
        return {}

    def sums(self, predictions: TargetValues, raw: RawBatch) -> Sums:
        there_B, chosen_BA = self.counts(raw), self.targets(raw)
        log_p_BA = self.log_probabilities(predictions, raw)
        available_B = jnp.sum(~jnp.isnan(chosen_BA), axis=1, dtype=jnp.int32)
        best_B = jnp.argmax(log_p_BA, axis=1)
        is_it_BA = (chosen_BA > 0.5) & there_B[:, None]
        right_B = jnp.take_along_axis(is_it_BA, best_B[:, None], axis=1)[:, 0]
        equal_B = jnp.log(jnp.maximum(available_B, 1).astype(jnp.float32))
        return {
            "nats": jnp.sum(self.token_losses(predictions, raw)),
            "choices": jnp.sum(there_B, dtype=jnp.int32),
            "right": jnp.sum(right_B, dtype=jnp.int32),
            "equal": jnp.sum(jnp.where(there_B, equal_B, 0)),
            "chosen_A": jnp.sum(is_it_BA, axis=0, dtype=jnp.int32),
            "expected_A": jnp.sum(jnp.where(there_B[:, None], jnp.exp(log_p_BA), 0), axis=0),
        }

    def metrics(self, sums: Arrays, rows: Arrays | None = None) -> dict[str, float]:
        """cross_entropy: nats of a choice, the mean of -log p; accuracy; rho_squared: McFadden's,
        1 - log-likelihood / log-likelihood of equal chances; share/NAME, how often an alternative
        was chosen, and expected/NAME, its mean probability."""
        choices = max(float(sums["choices"]), 1.0)
        nats, equal = float(sums["nats"]), float(sums["equal"])
        metrics = {"cross_entropy": nats / choices, "accuracy": float(sums["right"]) / choices}
        if equal > 0:
            metrics["rho_squared"] = 1 - nats / equal
        for k, name in enumerate(self.names):
            metrics[f"share/{name}"] = float(np.asarray(sums["chosen_A"])[k]) / choices
            metrics[f"expected/{name}"] = float(np.asarray(sums["expected_A"])[k]) / choices
        return metrics
