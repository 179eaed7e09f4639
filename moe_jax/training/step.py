"""The pure training and evaluation steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from moe_jax.config.schedules import bind
from moe_jax.models.layout import Layout
from moe_jax.models.network import Network, Params
from moe_jax.models.types import RouterStates
from moe_jax.nn.context import Context, LayerReport, Routes
from moe_jax.nn.depth import DepthReport
from moe_jax.nn.moe_layer import Grouping, MoEConfig
from moe_jax.parallel.mesh import row_shards
from moe_jax.routing.balance import routing_metrics
from moe_jax.routing.counterfactual import Counterfactual
from moe_jax.routing.losses import SCOPES, RoutingLosses, global_terms, scoped_loss
from moe_jax.routing.plan import add_sums, reduce_sums
from moe_jax.routing.scalars import as_pytree
from moe_jax.routing.types import Recorded, Router, RouterState, Sums, Traffic
from moe_jax.tasks.types import Objective, RawBatch, Writes
from moe_jax.tasks.types import Sums as TaskSums
from moe_jax.training.parameters import trained
from moe_jax.training.state import TrainState

Added = TypeVar("Added")
Beside = TypeVar("Beside")
Rows = dict[str, Array]  # results of each row, and VALID
VALID = "valid"  # which rows are no padding
Scalars = Mapping[str, ArrayLike]
ADDITIVE_SCOPES = tuple(scope for scope in SCOPES if scope != "global_batch")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BatchSums:
    """Additive statistics of a batch: the task's, per sparse layer (L, ...) the routing's, and per
    layer with a mixture of depths (L,) its own."""

    task: TaskSums
    routing: Sums | None
    traffic: Traffic | None
    depth: DepthReport | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step reports. grad_norm: of what is trained, before clipping.
    expert_grad_norm: (L, E), None in a dense model."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    bad_steps: Array
    skipped: Array
    sums: BatchSums
    layers: dict[str, Array]  # routing metrics, each (L,)
    expert_grad_norm: Array | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Observation:
    """One batch token by token. loss_BS: what the objective tells of each token, 0 where none
    counts; one column where it tells of rows. routes: leaves (L, B, S, ...), None in a dense
    model."""

    loss_BS: Float[Array, "B s"]
    routes: Routes | None


@dataclass(frozen=True)
class Step:
    """The steps of one experiment: static parts here, arrays as arguments.

    row_length: S, tokens of a row as the layers see them. accumulation: micro-batches of one
    optimizer step. max_rows: of an evaluation that are in
    memory at once, those of such a micro-batch; None: any number. noise_seed: of routing keys.
    scheduled: paths of scalars that may be non-zero although the config says 0.
    frozen: names of the groups of parameters that do not move.
    """

    network: Network
    task: Objective
    optimizer: optax.GradientTransformation
    moe: MoEConfig
    row_length: int
    accumulation: int
    noise_seed: int
    scheduled: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()
    max_rows: int | None = None

    @property
    def layout(self) -> Layout:
        """How the network's layers are stacked."""
        layout: Layout = self.network.abstract_module.layout
        return layout

    def router_at(self, scalars: Scalars) -> Router:
        """The router with these values of its scalars, by their paths in the config."""
        return as_pytree(bind(self.moe.router, scalars, prefix="moe.router"))

    def train(
        self, state: TrainState, raw: RawBatch, scalars: Scalars
    ) -> tuple[TrainState, StepResult]:
        """One optimizer step on a global batch of `accumulation` micro-batches.

        Each loss of the task is the mean over the whole batch, whatever the micro-batches. A
        step with a NaN or inf in loss or gradient changes nothing but the counters of skipped
        steps.
        """
        weights = {
            name: jnp.maximum(weight * self.layout.ensemble.members, 1)
            for name, weight in self.task.weights(raw).items()
        }
        router = self.router_at(scalars)
        context = Context(
            key=jax.random.fold_in(routing_key(self.noise_seed), state.step),
            router=router,
            train=True,
            capacity_factor=self.moe.capacity_factor,
            per_member=True,
        )
        losses = bind(self.moe.losses, scalars, prefix="moe.losses")
        loss, grads, sums = self._gradients(state, raw, context, losses, weights)
        grad_norm = optax.tree.norm(trained(grads, self.frozen))
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new_state = self._update(state, grads, sums, router)
        kept = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (new_state.params, new_state.opt_state, new_state.router_state),
            (state.params, state.opt_state, state.router_state),
        )
        bad = (~finite).astype(jnp.int32)
        new_state = replace(
            state,
            step=state.step + 1,
            params=kept[0],
            opt_state=kept[1],
            router_state=kept[2],
            bad_steps=(state.bad_steps + bad) * bad,
            skipped=state.skipped + bad,
        )
        result = StepResult(
            loss=loss,
            grad_norm=grad_norm,
            bad_steps=new_state.bad_steps,
            skipped=new_state.skipped,
            sums=sums,
            layers=self.layer_metrics(sums, state.router_state),
            expert_grad_norm=self._expert_grad_norm(grads),
        )
        return new_state, result

    def evaluate(
        self,
        params: Params,
        router_state: RouterStates,
        raw: RawBatch,
        scalars: Scalars,
        capacity_factor: float | None,
        counterfactual: Counterfactual | None = None,
        recorded: Recorded | None = None,
    ) -> tuple[BatchSums, Rows]:
        """Sums of one batch without noise, with evaluation's own capacity factor, and the task's
        results by row; in micro-batches of at most `max_rows` rows."""

        def look(raw: RawBatch, recorded: Recorded | None) -> tuple[BatchSums, Rows]:
            context = Context(
                router=self.router_at(scalars),
                capacity_factor=capacity_factor,
                counterfactual=counterfactual,
                recorded=recorded,
            )
            sums, _, rows = self._forward(params, router_state, raw, context, by_row=True)
            return sums, rows

        parts = self._evaluation_parts(raw)
        if parts == 1:
            return look(raw, recorded)
        # The rows of recorded routes are their second axis, after the layers.
        by_row = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), recorded)
        micro_batches = self._split((dict(raw), by_row), self._grouping, parts)

        def part(micro: PyTree[Array]) -> tuple[BatchSums, Rows]:
            raw, by_row = micro
            return look(raw, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), by_row))

        sums, rows = _added(part, micro_batches)
        return sums, self._joined(rows, self._grouping)

    def _evaluation_parts(self, raw: RawBatch) -> int:
        """The fewest equal parts that have no more than `max_rows` rows and fit the mesh."""
        rows = raw["row"].shape[0]
        units, over = divmod(rows, row_shards(self.network.mesh.shape) * self._grouping.rows)
        if self.max_rows is None or over:
            return 1
        fitting = [n for n in range(1, units + 1) if units % n == 0]
        return next((n for n in fitting if rows // n <= self.max_rows), units)

    def observe(
        self,
        params: Params,
        router_state: RouterStates,
        raw: RawBatch,
        context: Context,
    ) -> Observation:
        """What the model does with every token of a batch."""
        context = replace(context, capture=True)
        output = self.network.apply(params, self.task.inputs(raw), context, router_state)
        loss_BS = self.task.token_losses(output.predictions, raw)
        return Observation(loss_BS=loss_BS, routes=output.report and output.report.routes)

    def _forward(
        self,
        params: Params,
        router_state: RouterStates,
        raw: RawBatch,
        context: Context,
        by_row: bool = False,
    ) -> tuple[BatchSums, LayerReport | None, Rows]:
        inputs = self.task.inputs(raw)
        output = self.network.apply(params, inputs, context, router_state)
        rows = self.task.rows(output.predictions, raw) if by_row else {}
        rows = self._told_valid(rows, inputs)
        if context.per_member:
            raw = jax.tree.map(self.layout.ensemble.rows, dict(raw))
        task = self.task.sums(output.predictions, raw)
        report, depth = output.report, None
        if output.depth is not None:
            depth = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=1), output.depth)
        if report is None:
            return BatchSums(task=task, routing=None, traffic=None, depth=depth), None, rows
        sums = BatchSums(
            task=task,
            depth=depth,
            routing=reduce_sums(report.sums, axis=1),
            traffic=reduce_sums(report.traffic, axis=1),
        )
        return sums, report, rows

    def write(
        self, params: Params, router_state: RouterStates, raw: RawBatch, scalars: Scalars
    ) -> Rows:
        """The task's results by row of what the model writes by itself, without drops."""
        assert isinstance(self.task, Writes)
        context = Context(router=self.router_at(scalars), whole_rows=True)
        rows = self.task.write(self.network.module(params), context, router_state, raw)
        return self._told_valid(rows, self.task.inputs(raw))

    def _told_valid(self, rows: Rows, inputs: Any) -> Rows:
        if not rows:
            return rows
        _, segment_BS = inputs.tokens_and_segments(self.row_length)
        return {**rows, VALID: jnp.any(segment_BS > 0, axis=1)}

    # --- gradients ---

    def _gradients(
        self,
        state: TrainState,
        raw: RawBatch,
        context: Context,
        losses: RoutingLosses,
        weights: Mapping[str, Array],
    ) -> tuple[Array, Params, BatchSums]:
        """Loss, gradients and sums of the global batch."""
        micro_batches = self._split(dict(raw), self._grouping, self.accumulation)
        global_gradient, global_loss = None, jnp.zeros((), jnp.float32)
        if self.accumulation > 1 and self._needs_global_sums():
            global_loss, global_gradient = self._global_pass(state, micro_batches, context, losses)

        def loss_fn(params: Params, micro: RawBatch) -> tuple[Array, BatchSums]:
            sums, report, _ = self._forward(params, state.router_state, micro, context)
            loss = functools.reduce(
                jnp.add, [sums.task[name] / weight for name, weight in weights.items()]
            )
            if report is not None:
                loss += self._routing_loss(losses, report, global_gradient)
            return loss, sums

        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        if self.accumulation == 1:
            (loss, sums), grads = value_and_grad(state.params, _first(micro_batches))
            return loss, grads, sums

        def accumulate(
            carry: tuple[Array, Params, BatchSums], micro: RawBatch
        ) -> tuple[PyTree[Array], None]:
            (loss, sums), grads = value_and_grad(state.params, micro)
            total = jax.tree.map(jnp.add, carry[:2], (loss, grads))
            return (*total, add_sums(carry[2], sums)), None

        first = jax.eval_shape(value_and_grad, state.params, _first(micro_batches))
        (loss_shape, sums_shape), grads_shape = first
        zeros = _zeros_like((loss_shape, grads_shape, sums_shape))
        (loss, grads, sums), _ = jax.lax.scan(accumulate, zeros, micro_batches)
        if global_gradient is not None:
            # The inner products above carry the gradient; their value is not the loss.
            surrogate = _inner(global_gradient, sums.routing)
            loss = loss - surrogate + global_loss
        return loss, grads, sums

    def _routing_loss(
        self, losses: RoutingLosses, report: LayerReport, global_gradient: Sums | None
    ) -> Array:
        """This micro-batch's share of the routing losses."""
        pieces = self._grouping.pieces
        if self.accumulation == 1:
            return self._scoped_loss(losses, report.sums, SCOPES, pieces)
        local = self._scoped_loss(losses, report.sums, ADDITIVE_SCOPES, pieces)
        loss = local / self.accumulation
        if global_gradient is not None:
            loss += _inner(global_gradient, reduce_sums(report.sums, axis=1))
        return loss

    def _scoped_loss(
        self, losses: RoutingLosses, sums_LG: Sums, scopes: tuple[str, ...], pieces: int
    ) -> Array:
        router, members = self.moe.router, self.layout.ensemble.members

        def of_layers(sums_LG: Sums) -> Array:
            return scoped_loss(losses, router, sums_LG, scopes, pieces, members)

        return self.moe.gating.loss(of_layers, sums_LG, losses.over_layers)

    def _global_pass(
        self, state: TrainState, micro_batches: RawBatch, context: Context, losses: RoutingLosses
    ) -> tuple[Array, Sums]:
        """Losses over the global batch under accumulation: a forward-only pass for the sums, then
        dLoss/dSums. Back-propagating <dLoss/dSums, sums> through each micro-batch gives the exact
        gradient, because the sums of the batch are the sum of the micro-batches' sums."""

        def routing(micro: RawBatch) -> tuple[Sums | None, None]:
            sums = self._forward(state.params, state.router_state, micro, context)[0]
            return sums.routing, None

        total, _ = _added(routing, micro_batches)

        def loss_of(sums: Sums) -> Array:
            as_groups = jax.tree.map(lambda leaf: leaf[:, None], sums)
            return self._scoped_loss(losses, as_groups, ("global_batch",), 1)

        loss, gradient = jax.value_and_grad(loss_of, allow_int=True)(total)
        return loss, jax.lax.stop_gradient(gradient)

    def _needs_global_sums(self) -> bool:
        moe = self.moe
        return bool(
            moe.every and global_terms(moe.losses, moe.router, moe.num_experts, self.scheduled)
        )

    # --- pieces ---

    def _update(
        self, state: TrainState, grads: Params, sums: BatchSums, router: Router
    ) -> TrainState:
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return replace(
            state,
            params=params,
            opt_state=opt_state,
            router_state=self._update_routers(state.router_state, sums, router),
        )

    def _update_routers(
        self, router_state: RouterStates, sums: BatchSums, router: Router
    ) -> RouterStates:
        """Each layer's router state from that layer's sums over the whole global batch."""
        if sums.routing is None or not jax.tree.leaves(router_state):
            return router_state
        gates = self.moe.gating
        layer_sums = self.layout.by_stack(gates.of_layers(sums.routing))
        update = jax.vmap(lambda state, sums: gates.mapped(router.update, state, sums))
        return {name: update(state, layer_sums[name]) for name, state in router_state.items()}

    def layer_metrics(self, sums: BatchSums, router_state: RouterStates) -> dict[str, Array]:
        """Every routing metric of every sparse layer, name -> (L,), the router's own as
        router/NAME; {} in a dense model. Of several gates (L K,), gate by gate of each layer, over
        the experts that each may choose."""
        if sums.routing is None or sums.traffic is None:
            return {}
        router, gates = self.moe.router, self.moe.gating
        state = gates.as_layers(self.layout.in_layer_order(router_state))

        def of_layer(sums: Sums, traffic: Traffic, state: RouterState) -> dict[str, Array]:
            own = {f"router/{name}": x for name, x in router.metrics(state, sums).items()}
            return routing_metrics(sums, traffic) | own

        if not gates.own:
            return jax.vmap(of_layer)(sums.routing, sums.traffic, state)
        E = self.moe.num_experts
        of_gates = [
            jax.vmap(of_layer)(
                gates.seen(sums.routing, gate, E),
                gates.seen(sums.traffic, gate, E),
                gates.seen(state, gate, E),
            )
            for gate in range(gates.number)
        ]
        names = of_gates[0]
        return {
            name: jnp.stack([of_gate[name] for of_gate in of_gates], axis=1).reshape(-1)
            for name in names
        }

    def _expert_grad_norm(self, grads: Params) -> Array | None:
        """(L, E): Euclidean norm of each expert's gradient, over its parameters."""
        if not self.layout.moe_stacks:
            return None

        def norm(experts: Mapping[str, Array]) -> Array:
            squares = [
                jnp.sum(jnp.square(w), axis=tuple(range(2, w.ndim))) for w in experts.values()
            ]
            return jnp.sqrt(jnp.sum(jnp.stack(squares), axis=0))

        by_stack = {
            stack.name: norm(grads["layers"][stack.name]["moe"]["experts"])
            for stack in self.layout.moe_stacks
        }
        norm_LE: Array = self.layout.in_layer_order(by_stack)
        return norm_LE

    @property
    def _grouping(self) -> Grouping:
        return Grouping.of(self.moe.group_size, self.row_length)

    @staticmethod
    def _split(batch: PyTree[Array], grouping: Grouping, M: int) -> PyTree[Array]:
        """(B, ...) -> (M, B / M, ...): micro-batch m takes every M-th group of rows, which each
        shard of the batch has in equal number, so nothing moves and no mesh changes the split."""
        n = grouping.rows

        def split(leaf: Array) -> Array:
            B = leaf.shape[0]
            cut = leaf.reshape(B // (M * n), M, n, *leaf.shape[1:])
            return jnp.moveaxis(cut, 1, 0).reshape(M, B // M, *leaf.shape[1:])

        return jax.tree.map(split, batch)

    @staticmethod
    def _joined(micro_batches: PyTree[Array], grouping: Grouping) -> PyTree[Array]:
        """The inverse of `_split`."""

        def join(leaf: Array) -> Array:
            M, part = leaf.shape[:2]
            cut = leaf.reshape(M, part // grouping.rows, grouping.rows, *leaf.shape[2:])
            return jnp.moveaxis(cut, 0, 1).reshape(M * part, *leaf.shape[2:])

        return jax.tree.map(join, micro_batches)


def routing_key(seed: int) -> Array:
    """The root of the keys of routing noise. Keys are made by folding numbers into each other
    (step, layer, group), as those of parameters are: the first number keeps the two apart."""
    return jax.random.fold_in(jax.random.key(seed), 0x726F7574)


def _added(
    look: Callable[[PyTree[Array]], tuple[Added, Beside]], micro_batches: PyTree[Array]
) -> tuple[Added, Beside]:
    """Of all micro-batches, worked on one after the other: the first results added, the second ones
    beside each other."""

    def add(total: Added, micro: PyTree[Array]) -> tuple[Added, Beside]:
        sums, beside = look(micro)
        return add_sums(total, sums), beside

    none = _zeros_like(jax.eval_shape(look, _first(micro_batches))[0])
    return jax.lax.scan(add, none, micro_batches)


def _zeros_like(shapes: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _first(micro_batches: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: leaf[0], micro_batches)


def _inner(gradient: Sums, sums: Sums) -> Array:
    """<dLoss/dSums, sums> over the float leaves; counts have no gradient."""
    products = [
        jnp.sum(g * s)
        for g, s in zip(jax.tree.leaves(gradient), jax.tree.leaves(sums), strict=True)
        if jnp.issubdtype(s.dtype, jnp.floating)
    ]
    return jnp.sum(jnp.stack(products))
