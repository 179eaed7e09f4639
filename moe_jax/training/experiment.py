"""`Experiment`: the whole config of a run, and the rules that span several of its parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from moe_jax.config.fields import Rule, at_least, at_most, kind
from moe_jax.config.schedules import schedule_rules
from moe_jax.data.datasets import DATASETS, Dataset, StdlibText, classes_of, vocabulary_of
from moe_jax.data.tokenizer import IdTokenizer
from moe_jax.data.types import Columns, DataInfo, columns_of
from moe_jax.models import MODELS
from moe_jax.models.counts import Counts, count
from moe_jax.models.decoder import DecoderConfig
from moe_jax.models.transformer import TransformerConfig
from moe_jax.models.types import IO
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.tasks import TASKS
from moe_jax.tasks.language_model import LanguageModel
from moe_jax.tasks.types import Task, TellsTasks
from moe_jax.training.checkpoint import CheckpointConfig
from moe_jax.training.optimizer import OPTIMIZERS, AdamW, Optimizer
from moe_jax.training.writers import LoggingConfig

MAX_SEED = 2**32 - 1  # JAX's keys take seeds modulo 2^32: larger ones would be others once more
MAX_COUNT = 2**31 - 1  # counters are int32
MIN_VOCABULARY = 264  # that of the bytes, and of runs from before the tokenizer was asked


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Separate seeds, so that the arms of a comparison can be paired. None: the run's `seed`."""

    init: int | None = None
    data: int | None = None
    routing: int | None = None

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "init", "data", "routing")
        yield from at_most(self, MAX_SEED, "init", "data", "routing")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation every `every` steps (0: only at the end) and at the end, on `batches` batches
    (-1: all), with its own capacity factor (None: dropless)."""

    every: int = 100
    batches: int = -1
    batch_size: int | None = None  # None: the training batch size
    split: str = "validation"
    capacity_factor: float | None = None

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 0, "every")
        yield from at_least(self, 1, "batch_size")
        yield from at_most(self, MAX_COUNT, "batch_size")
        if self.capacity_factor is not None and self.capacity_factor <= 0:
            yield "capacity_factor", "must be above 0"
        if self.batches != -1:
            yield from at_least(self, 1, "batches")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that defines a run."""

    name: str = "experiment"
    seed: int = 0
    seeds: Seeds = field(default_factory=Seeds)
    steps: int = 1000
    batch_size: int = 16  # rows of one optimizer step, over all devices and micro-batches
    accumulation: int = 1  # micro-batches of one optimizer step
    max_bad_steps: int = 5  # stop after so many steps in a row with a NaN/inf loss or gradient
    task: Task = kind(TASKS, LanguageModel)
    data: Dataset = kind(DATASETS, StdlibText)
    model: TransformerConfig = kind(MODELS, DecoderConfig)
    moe: MoEConfig = field(default_factory=MoEConfig)
    optimizer: Optimizer = kind(OPTIMIZERS, AdamW)
    schedules: tuple[
        str, ...
    ] = ()  # e.g. "moe.losses.load_balance.coefficient = linear(0, 0.01, 1000)"
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "steps", "batch_size", "accumulation", "max_bad_steps")
        yield from at_least(self, 0, "seed")
        yield from at_most(self, MAX_SEED, "seed")
        yield from at_most(self, MAX_COUNT, "steps", "batch_size")
        yield from schedule_rules(self)

    def completed(self) -> Experiment:
        """With the values that follow from others, as far as the settings alone say them."""
        named = self.with_classes(DataInfo(classes=classes_of(self.data)))
        ids = vocabulary_of(self.data) if named.vocabulary == 0 else None
        sized = named if ids is None else named.with_vocabulary(ids)
        return sized._gated()

    def with_info(self, info: DataInfo) -> Experiment:
        """With the values that are left to the data, once it is opened."""
        named = self.with_classes(info).with_tasks(info)._gated()
        ids = info.ids if info.tokenizer is None else info.tokenizer.vocab_size
        return named.with_vocabulary(ids) if ids else named

    def with_classes(self, info: DataInfo) -> Experiment:
        return replace(self, task=self.task.completed(info))

    def with_tasks(self, info: DataInfo) -> Experiment:
        """With moe.router.tasks, where the router routes by tasks and that is left to the data."""
        router = self.moe.router
        if not router.reads_tasks or getattr(router, "tasks", None) != 0:
            return self
        number = len(self.row_tasks(info.domains) or ())
        completed = replace(router, tasks=max(number, 1))  # type: ignore[type-var]
        return replace(self, moe=replace(self.moe, router=completed))

    def row_tasks(self, domains: tuple[str, ...] = ()) -> tuple[str, ...] | None:
        """The tasks that rows of data with these domains have; None: none are told."""
        task = self.task
        if not isinstance(task, TellsTasks):
            return None
        return task.row_tasks(columns_of(self.data), domains)

    def _gated(self) -> Experiment:
        """With the gates that the model has for what it is to give; nothing where columns are
        missing, which a rule says."""
        if set(self.task.reads(there := columns_of(self.data))) - there.keys():
            return self
        return replace(self, moe=self.model.gated(self.moe, self.io))

    def with_vocabulary(self, ids: int) -> Experiment:
        """With model.vocab_size for so many ids, where that is left to the tokenizer."""
        if self.vocabulary != 0:
            return self
        size = max(MIN_VOCABULARY, -(-ids // 8) * 8)
        return replace(self, model=replace(self.model, vocab_size=size))  # type: ignore[call-arg]

    @property
    def vocabulary(self) -> int | None:
        """model.vocab_size; None: the model knows no ids."""
        return getattr(self.model, "vocab_size", None)

    @property
    def columns(self) -> Columns:
        """The columns of the data that the task reads; those that are not there are left out."""
        there = columns_of(self.data)
        return {name: there[name] for name in self.task.reads(there) if name in there}

    @property
    def io(self) -> IO:
        """What goes into the model and what it is to give."""
        return self.task.io(columns_of(self.data))

    @property
    def row_length(self) -> int:
        """S, the tokens of a row as the model's layers see them."""
        return self.model.row_length(self.io)

    def stand_in(self) -> DataInfo:
        """What opened data would say, as far as shapes depend on it: to build without data. Two
        classes where only the data knows how many."""
        ids, classes = self.vocabulary, self.io.classes
        return DataInfo(
            tokenizer=IdTokenizer(ids, bytes_per_id=1) if ids and self.io.table is None else None,
            classes=() if classes is None else tuple(str(n) for n in range(classes or 2)),
            ids=(ids or 1) if self.io.table else 0,
        )

    @property
    def counts(self) -> Counts:
        """Parameters and FLOPs."""
        return count(self.model, self.moe, self.io)
