"""From a config to compiled functions: mesh, network, optimizer, the jitted steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped
from jaxtyping import Array, PyTree

from moe_jax.config.errors import ConfigError, Problem, UserError
from moe_jax.config.schedules import Schedules, parse_schedules
from moe_jax.data.types import FILLS, NO_ROW, Columns, DataInfo, Rows, Tokenizer
from moe_jax.models.counts import Counts
from moe_jax.models.layout import Layout
from moe_jax.models.network import Network, Params, abstract_with, replicated
from moe_jax.models.types import Output, RouterStates
from moe_jax.nn.context import Context, Routes
from moe_jax.nn.ensemble import AnyPredictions
from moe_jax.parallel.compiler import step_options
from moe_jax.parallel.mesh import ROW_AXES, make_mesh, row_shards
from moe_jax.parallel.placement import local_rows, put, put_rows
from moe_jax.routing.counterfactual import Counterfactual
from moe_jax.routing.types import Recorded
from moe_jax.tasks.types import RawBatch, Writes
from moe_jax.training.experiment import Experiment
from moe_jax.training.optimizer import make_optimizer
from moe_jax.training.rules import cross_check, rows_per_group
from moe_jax.training.state import TrainState
from moe_jax.training.step import BatchSums, Observation, Scalars, Step
from moe_jax.training.step import Rows as StepRows


@dataclass(frozen=True)
class Program:
    """The functions of one experiment on one mesh. Build it with `build`."""

    experiment: Experiment
    mesh: Mesh
    network: Network
    step: Step
    schedule: optax.Schedule  # learning rate
    columns: Columns  # of a batch
    counterfactual: Counterfactual | None = None  # of evaluations, in place of the router

    @property
    def layout(self) -> Layout:
        """How the network's layers are stacked."""
        return self.step.layout

    @property
    def gates(self) -> tuple[str, ...]:
        """Of several gates, what each is for; () of one."""
        e = self.experiment
        return e.model.gate_names(e.moe, e.io)

    # --- state ---

    def init(self) -> TrainState:
        """A new state, every array created sharded."""
        seed = init_seed(self.experiment)
        params = self.network.init(jax.random.key(seed))
        shardings = self.state_shardings
        rest = jax.jit(self._rest_of_state, out_shardings=_rest(shardings))(params)
        return TrainState(params=params, **rest)

    def _rest_of_state(self, params: Params) -> dict[str, PyTree[Array]]:
        zero = jnp.zeros((), jnp.int32)
        return {
            "step": zero,
            "opt_state": self.step.optimizer.init(params),
            "router_state": self.network.module(params).router_state(),
            "bad_steps": zero,
            "skipped": zero,
            "probe": jnp.asarray(self._no_probe),
        }

    @cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state: what a checkpoint is restored into."""
        shapes = self._state_shapes
        abstract: TrainState = abstract_with(shapes, self.state_shardings)
        return abstract

    @cached_property
    def abstract_model(self) -> TrainState:
        """What of it the trained model is: to load it without the rest, which depends on how the
        run was trained and watched."""
        absent: dict[str, Any] = dict.fromkeys(("opt_state", "bad_steps", "skipped", "probe"))
        return replace(self.abstract_state, **absent)

    @cached_property
    def _state_shapes(self) -> TrainState:
        rest = jax.eval_shape(self._rest_of_state, self.network.abstract)
        return TrainState(params=self.network.abstract, **rest)

    def fresh_probe(self) -> jax.Array:
        """The routes before the first probe."""
        probe: jax.Array = put(self._no_probe, self.state_shardings.probe)
        return probe

    @property
    def _no_probe(self) -> np.ndarray:
        return np.full(self.probe_shape, -1, np.int32)

    @cached_property
    def state_shardings(self) -> TrainState:
        """Parameters by the rule table; optimizer moments like their parameter; the rest, which
        is small, replicated."""
        shapes, whole = self._state_shapes, replicated(self.mesh)

        def like(
            leaf: jax.ShapeDtypeStruct | optax.MaskedNode,
            param: jax.ShapeDtypeStruct,
            where: NamedSharding,
        ) -> NamedSharding | optax.MaskedNode:
            if _is_masked(leaf):
                return leaf  # a parameter that this part of the optimizer has nothing to do with
            return where if leaf.shape == param.shape else whole

        like_params = optax.tree_map_params(
            self.step.optimizer,
            like,
            shapes.opt_state,
            self.network.abstract,
            self.network.shardings,
            transform_non_params=lambda leaf: whole,
            is_leaf=_is_masked,
        )
        others = jax.tree.map(lambda leaf: whole, shapes)
        return TrainState(
            step=others.step,
            params=self.network.shardings,
            opt_state=like_params,
            router_state=others.router_state,
            bad_steps=others.bad_steps,
            skipped=others.skipped,
            probe=others.probe,
        )

    # --- jitted functions ---

    @cached_property
    def train_step(self) -> Wrapped:
        """(state, raw, scalars) -> (state, StepResult); the state is donated."""
        overlap = self.experiment.moe.overlap_chunks > 1
        return self.jitted_step(step_options(self.mesh.devices.flat[0], overlap=overlap))

    def jitted_step(self, options: Mapping[str, str | int | bool] | None) -> Wrapped:
        """`train_step` with these options of the compiler."""
        return jax.jit(
            self.step.train,
            donate_argnums=0,
            out_shardings=(self.state_shardings, replicated(self.mesh)),
            compiler_options=dict(options) if options else None,
        )

    @cached_property
    def eval_step(self) -> Wrapped:
        """(params, router_state, raw, scalars, recorded) -> (BatchSums, Rows) with evaluation's
        capacity factor."""
        factor, counterfactual = self.experiment.evaluation.capacity_factor, self.counterfactual

        def evaluate(
            params: Params,
            router_state: RouterStates,
            raw: RawBatch,
            scalars: Scalars,
            recorded: Recorded | None = None,
        ) -> tuple[BatchSums, StepRows]:
            return self.step.evaluate(
                params, router_state, raw, scalars, factor, counterfactual, recorded
            )

        return jax.jit(evaluate, out_shardings=replicated(self.mesh))

    @property
    def written(self) -> int:
        """Of how many rows of an evaluation the task wants what the model writes."""
        task = self.step.task
        return task.written if isinstance(task, Writes) else 0

    @cached_property
    def write_step(self) -> Wrapped:
        """(params, router_state, raw, scalars) -> Rows of what the model writes of each row."""
        return jax.jit(self.step.write, out_shardings=replicated(self.mesh))

    @cached_property
    def observe_step(self) -> Wrapped:
        """(params, router_state, raw, scalars, recorded=None, train=False) -> Observation.

        train: with the routing and the capacity of training, without its noise.
        """
        moe, factor = self.experiment.moe, self.experiment.evaluation.capacity_factor

        def observe(
            params: Params,
            router_state: RouterStates,
            raw: RawBatch,
            scalars: Scalars,
            recorded: Recorded | None = None,
            train: bool = False,
        ) -> Observation:
            context = Context(
                router=self.step.router_at(scalars),
                train=train,
                capacity_factor=moe.capacity_factor if train else factor,
                counterfactual=self.counterfactual,
                recorded=recorded,
            )
            return self.step.observe(params, router_state, raw, context)

        return jax.jit(observe, static_argnames="train", out_shardings=replicated(self.mesh))

    @cached_property
    def route_step(self) -> Wrapped:
        """(params, router_state, raw, scalars) -> Routes, leaves (L, B, S, ...); no noise."""
        return jax.jit(self._route, out_shardings=replicated(self.mesh))

    @cached_property
    def probe_step(self) -> Wrapped:
        """As route_step, of the first `probe_rows` rows of a batch of `probe_batch_size`."""

        def route(
            params: Params, router_state: RouterStates, raw: RawBatch, scalars: Scalars
        ) -> Routes:
            routes = self._route(params, router_state, raw, scalars)
            few: Routes = jax.tree.map(lambda leaf: leaf[:, : self.probe_rows], routes)
            return few

        return jax.jit(route, out_shardings=replicated(self.mesh))

    @cached_property
    def predict_step(self) -> Wrapped:
        """(params, router_state, raw, scalars) -> the model's predictions, as evaluation has them
        (nn/predictions.py)."""

        def predict(
            params: Params, router_state: RouterStates, raw: RawBatch, scalars: Scalars
        ) -> AnyPredictions | None:
            context = Context(
                router=self.step.router_at(scalars),
                capacity_factor=self.experiment.evaluation.capacity_factor,
                counterfactual=self.counterfactual,
            )
            batch = self.step.task.inputs(raw)
            output: Output = self.network.apply(params, batch, context, router_state)
            return output.predictions

        return jax.jit(predict, out_shardings=replicated(self.mesh))

    def _route(
        self, params: Params, router_state: RouterStates, raw: RawBatch, scalars: Scalars
    ) -> Routes:
        context = Context(router=self.step.router_at(scalars), capture=True)
        batch = self.step.task.inputs(raw)
        routes: Routes = self.network.apply(params, batch, context, router_state).report.routes
        return routes

    # --- arguments ---

    @cached_property
    def batch_sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(ROW_AXES))

    def local_rows(self, batch_size: int) -> np.ndarray:
        """The rows of a batch that this process's devices need; all, where it is alone."""
        return local_rows(self.batch_sharding, batch_size)

    def put(
        self, raw: Mapping[str, np.ndarray], first_row: int = 0, batch_size: int | None = None
    ) -> dict[str, jax.Array]:
        """A batch of numpy rows onto the mesh, with each row's number in the global batch, NO_ROW
        of those that FILLS (data/types.py) names.

        batch_size: of the batch of which `raw` has the `local_rows`; None: `raw` has all rows.
        first_row: number of the batch's first row, in an evaluation of several batches.
        """
        whole = self._rows_of(raw) if batch_size is None else batch_size
        held = np.arange(whole) if batch_size is None else self.local_rows(whole)
        numbers = _numbered(raw, first_row + held)
        arrays = {**{name: raw[name] for name in self.columns}, "row": numbers}
        return put_rows(arrays, held, whole, self.batch_sharding)

    def _rows_of(self, raw: Mapping[str, np.ndarray]) -> int:
        return len(raw[next(iter(self.columns))])

    def tokens_and_segments(self, raw: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(id, segment), int32 (P, B, S), of each token that the layers of each of the P parts of
        the model see of numpy rows; segment 0 is none."""
        rows = _numbered(raw, np.arange(self._rows_of(raw)))
        batch: dict[str, Any] = {**raw, "row": rows}  # a task takes numpy's arrays too
        inputs, S = self.step.task.inputs(batch), self.experiment.row_length
        found = [inputs.tokens_and_segments(S, p) for p in range(len(self.layout.parts))]
        token_PBS, segment_PBS = (
            np.stack([np.asarray(x, np.int32) for x in of_parts])
            for of_parts in zip(*found, strict=True)
        )
        return token_PBS, segment_PBS

    @cached_property
    def scalars(self) -> Schedules:
        """scalars(step): the scheduled values of a step, to be passed to the steps."""
        return Schedules(self.experiment)

    @property
    def probes(self) -> bool:
        """Whether there is routing to probe, and the config wants it."""
        return bool(self.layout.moe_layers and self.experiment.logging.probe_every)

    @cached_property
    def probe_shape(self) -> tuple[int, ...]:
        """(L, B, S, K) of the probe's expert choices; (1,) where there is nothing to probe (Orbax
        saves no empty arrays)."""
        layers = len(self.layout.moe_layers) * self.experiment.moe.gates
        choices = self.experiment.moe.choices
        if not self.probes:
            return (1,)
        return (layers, self.probe_rows, self.experiment.row_length, choices)

    @property
    def probe_rows(self) -> int:
        """Rows that the probe watches."""
        return min(self.experiment.logging.probe_rows, self.eval_batch_size)

    @property
    def probe_batch_size(self) -> int:
        """Rows of the smallest batch that fits the mesh and has them."""
        unit = row_shards(self.mesh.shape) * rows_per_group(self.experiment)
        return -(-self.probe_rows // unit) * unit

    @property
    def eval_batch_size(self) -> int:
        """Rows of an evaluation batch: they fit every mesh of the run."""
        return self.experiment.evaluation.batch_size or self.experiment.batch_size

    @cached_property
    def counts(self) -> Counts:
        return self.experiment.counts

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a training batch."""
        B = self.experiment.batch_size
        arrays = {name: ((B, *spec.shape), spec.dtype) for name, spec in self.columns.items()}
        arrays["row"] = ((B,), "int32")
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=self.batch_sharding)
            for name, (shape, dtype) in arrays.items()
        }


def build(
    experiment: Experiment,
    info: DataInfo | Rows | Tokenizer,
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """The program of a config whose parts passed their own checks.

    info: what is to be known of the data; a tokenizer stands for text of it. Raises ConfigError
    with all that is wrong between the parts, the mesh and the data.
    """
    devices, info = jax.devices() if devices is None else devices, DataInfo.of(info)
    experiment = experiment.completed().with_info(info)
    problems = cross_check(experiment, len(devices)) + _against(experiment, info)
    if problems:
        raise ConfigError(problems)
    mesh = make_mesh(experiment.mesh, devices)
    network = Network(
        lambda rngs: experiment.model.build(experiment.moe, experiment.io, mesh, rngs=rngs), mesh
    )
    optimizer, schedule = make_optimizer(
        experiment.optimizer, network.abstract, network.forms, experiment.steps
    )
    step = Step(
        network=network,
        task=experiment.task.start(experiment.vocabulary or 0, info),
        optimizer=optimizer,
        moe=experiment.moe,
        row_length=experiment.row_length,
        accumulation=experiment.accumulation,
        noise_seed=_seed(experiment, "routing"),
        scheduled=frozenset(parse_schedules(experiment)),
        frozen=experiment.optimizer.groups.frozen,
        max_rows=experiment.batch_size // experiment.accumulation,
    )
    return Program(experiment, mesh, network, step, schedule, experiment.columns)


def _numbered(raw: Mapping[str, np.ndarray], number_B: np.ndarray) -> np.ndarray:
    """int32 (B,): the rows' numbers, NO_ROW of those that only fill up the batch."""
    numbers: np.ndarray = np.where(raw.get(FILLS, False), NO_ROW, number_B).astype(np.int32)
    return numbers


def _against(experiment: Experiment, info: DataInfo) -> list[Problem]:
    """What is wrong between a config and opened data."""
    task = experiment.task
    problems = [
        Problem(f"task.{name}", getattr(task, name, type(task).__name__), rule)
        for name, rule in task.fits(info)
    ]
    vocabulary, tokenizer = experiment.vocabulary, info.tokenizer
    if vocabulary is not None and tokenizer is not None and tokenizer.vocab_size > vocabulary:
        rule = f"must be at least the tokenizer's {tokenizer.vocab_size}, or 0 to follow it"
        problems.append(Problem("model.vocab_size", vocabulary, rule))
    if vocabulary is not None and vocabulary < info.ids:
        rule = f"must be at least the {info.ids} ids of the data's categories, or 0 to follow them"
        problems.append(Problem("model.vocab_size", vocabulary, rule))
    return problems


def _is_masked(node: object) -> bool:
    return isinstance(node, optax.MaskedNode)


def _seed(experiment: Experiment, name: str) -> int:
    own = getattr(experiment.seeds, name)
    return experiment.seed if own is None else own


def init_seed(experiment: Experiment) -> int:
    return _seed(experiment, "init")


def data_seed(experiment: Experiment) -> int:
    return _seed(experiment, "data")


def _rest(shardings: TrainState) -> dict[str, PyTree[NamedSharding]]:
    names = ("step", "opt_state", "router_state", "bad_steps", "skipped", "probe")
    return {name: getattr(shardings, name) for name in names}


def require_not_empty(rows: Sized, split: str, least: int) -> None:
    """UserError where a split has fewer rows than one batch needs."""
    if len(rows) < least:
        raise UserError(
            f"config.data: the {split} split has {len(rows)} rows, "
            f"fewer than the {least} of a batch"
        )
