"""What a task is to the rest: what the model sees, the loss, and the figures made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from moe_jax.config.fields import Rule
from moe_jax.data.types import Columns, DataInfo
from moe_jax.models.types import IO, RouterStates
from moe_jax.nn.context import Context, ImageBatch, PairBatch, TableBatch, TokenBatch

# The columns of a batch, and `row`: each row's number in it, below 0 where it only fills it up.
RawBatch = Mapping[str, Array]
Sums = dict[str, Array]  # by name: float32 sums and int32 counts
Arrays = Mapping[str, Array | np.ndarray]  # by name


def real_rows(raw: RawBatch) -> Bool[Array, "B"]:
    """Those that do not only fill up the batch, whether they have a label or not."""
    return jnp.asarray(raw["row"]) >= 0


@dataclass(frozen=True)
class Headline:
    """A metric by which runs are compared, and what is good of it."""

    name: str
    best: Literal["min", "max"]


class Task(Protocol):
    """The config of a task: a frozen dataclass, a row of TASKS.


    headlines: what sweeps, progress and the report put first; the first one that a run has.
    """

    headlines: ClassVar[tuple[Headline, ...]]

    def reads(self, columns: Columns) -> tuple[str, ...]:
        """Which columns it reads of data that has these; a name that is not there is asked for."""
        ...

    def io(self, columns: Columns) -> IO:
        """What goes into the model and comes out of it, for data with these columns."""
        ...

    def completed(self, info: DataInfo) -> Task:
        """The task with the settings that are left to the data."""
        ...

    def fits(self, info: DataInfo) -> Iterator[Rule]:
        """What is wrong between the task and opened data."""
        ...

    def figures(self) -> tuple[str, ...]:
        """Names of the metrics that every evaluation has by it."""
        ...

    def start(self, vocabulary: int, info: DataInfo) -> Objective:
        """What a step computes. vocabulary: ids that the model knows, 0 for none."""
        ...


@runtime_checkable
class TellsTasks(Protocol):
    """A task whose rows are of several tasks themselves (languages, domains), by which a router may
    route: its inputs have `TokenBatch.task_BS`."""

    def row_tasks(self, columns: Columns, domains: tuple[str, ...]) -> tuple[str, ...] | None:
        """Their names, for data with these columns and domains; None: it tells of none."""
        ...


@runtime_checkable
class Writes(Protocol):
    """An objective whose evaluations also look at what the model writes by itself: further results
    of rows (`Objective.rows`), which take many passes through the model.

    written: of so many rows of an evaluation, the first ones; 0: of none.
    """

    written: int

    # model: the module of a model that writes.

    def write(
        self, model: Any, context: Context, router_state: RouterStates, raw: RawBatch
    ) -> dict[str, Array]:
        """Results by row, (B, ...), of what the model writes."""
        ...


class Objective(Protocol):
    """A task on known data: pure functions of a batch and of what the model predicts.

    A loss is the mean of what it adds up: sums[name] / weights[name], added over the losses. Its
    weight is known before the forward pass, so that the mean over a global batch depends neither
    on micro-batches nor on devices nor on padding.

    counters: names of sums that are counts of the data alone. losses: names of the metrics that are
    the losses themselves.
    """

    counters: ClassVar[tuple[str, ...]]
    losses: ClassVar[tuple[str, ...]]

    def inputs(self, raw: RawBatch) -> TokenBatch | ImageBatch | PairBatch | TableBatch:
        """What the model sees of a batch (nn/context.py)."""
        ...

    def weights(self, raw: RawBatch) -> dict[str, Float[Array, ""]]:
        """The denominator of each loss over these rows, float32."""
        ...

    # predictions: each task takes those of its own models (nn/predictions.py).

    def sums(self, predictions: Any, raw: RawBatch) -> Sums:
        """Losses by name, and counters: additive over rows. Copies of rows (an ensemble in
        training) come as further rows."""
        ...

    def token_losses(self, predictions: Any, raw: RawBatch) -> Float[Array, "B S"]:
        """What a trace tells of each token: its own loss, or that of its row; 0 where none
        counts."""
        ...

    def rows(self, predictions: Any, raw: RawBatch) -> dict[str, Array]:
        """Results of each row, (B, ...), for metrics that are no function of sums; {} for none. An
        evaluation gathers them once, without the rows that fill up its last batch."""
        ...

    def metrics(self, sums: Arrays, rows: Arrays | None = None) -> dict[str, float]:
        """Figures by name, of sums over an evaluation or a step, and of rows where there are."""
        ...
