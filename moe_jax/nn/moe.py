"""`moe_jax.MoE`: the sparse layer as a part of somebody's own model.

layer = moe_jax.MoE(512, experts=8, hidden=1024, rngs=nnx.Rngs(0))
y, report = layer(x)
loss = task_loss + report.loss
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec
from jaxtyping import Array, Float, PyTree

from moe_jax.config.checks import check
from moe_jax.experts import Expert, FeedForward
from moe_jax.nn.context import Context, LayerReport, Routes, TokenBatch
from moe_jax.nn.gates import Gates
from moe_jax.nn.moe_layer import Grouping, MoEConfig, MoELayer
from moe_jax.parallel.axes import OURS, MeshAxes, Place
from moe_jax.routing import Mixtral
from moe_jax.routing.balance import routing_metrics
from moe_jax.routing.losses import SCOPES, LoadBalance, RoutingLosses, scoped_loss
from moe_jax.routing.plan import reduce_sums
from moe_jax.routing.scalars import as_pytree
from moe_jax.routing.types import Router, Sums, Traffic

State = Mapping[str, Array]
USUAL_LOSSES = RoutingLosses(load_balance=LoadBalance(coefficient=0.01))


class RouterState(nnx.Variable[Array]):
    """What a router keeps between steps and no optimizer sees: a balancing bias, say."""


class Report(flax.struct.PyTreeNode):
    """What a layer tells of one call, a pytree that may leave a jitted function.

    loss: the weighted routing losses, float32, to be added to the task's. sums, traffic: counts and
    sums over all tokens of the call. state: the router's, as it was. routes: where each token went,
    leaves (rows, tokens, ...), if asked for.
    """

    loss: Float[Array, ""]
    sums: Sums
    traffic: Traffic
    state: State
    router: Router
    routes: Routes | None = None
    gates: Gates = flax.struct.field(pytree_node=False, default=Gates())

    def metrics(self) -> dict[str, Float[Array, ""]]:
        """Named as in metrics.jsonl: moe/max_violation, moe/dropped_fraction, ..., and the router's
        own as moe/router/NAME; of several gates moe/gate_0/max_violation, ..."""
        if self.gates.number == 1:
            return self._metrics("moe/", self.state, self.sums, self.traffic)
        found: dict[str, Float[Array, ""]] = {}
        E = self.sums.wanted_E.shape[-1]
        for number in range(self.gates.number):
            state = {name: leaf[number] for name, leaf in self.state.items()}
            sums, traffic = (
                jax.tree.map(lambda leaf: leaf[0], self.gates.seen(tree, number, E))
                for tree in (self.sums, self.traffic)
            )
            found |= self._metrics(f"moe/gate_{number}/", state, sums, traffic)
        return found

    def _metrics(
        self, prefix: str, state: State, sums: Sums, traffic: Traffic
    ) -> dict[str, Float[Array, ""]]:
        own = self.router.metrics(state, sums)
        named = routing_metrics(sums, traffic)
        return {f"{prefix}{name}": value for name, value in named.items()} | {
            f"{prefix}router/{name}": value for name, value in own.items()
        }


def updated(report: Report) -> State:
    """The router's next state, from the report of a call over the whole batch: the pure form of
    `MoE.update`, for Linen and plain JAX. {} for most routers."""
    if not report.state:
        return {}
    update = report.router.update if report.gates.number == 1 else jax.vmap(report.router.update)
    return update(report.state, report.sums)


class MoE(nnx.Module):
    """y = sum over the chosen experts of weight * expert(x), plus the shared experts.

    dim: D, the width of a token. experts: E. hidden: F, the hidden width of one expert. router: how
    tokens choose, one of `moe_jax.routers` or your own (default: the best 2 by a softmax over
    them, as in Mixtral). losses: the routing losses of `report.loss` (default: load balance with
    coefficient 0.01). activation: a key of ops.expert_ffn.ACTIVATIONS. expert: what an expert
    computes, of `moe_jax.experts` or your own (default: that activation's). capacity_factor: of
    training; None: dropless. eval_capacity_factor: without `train`. group_size: tokens among which
    capacity is shared; None: one row. shared: shared experts, of width `shared_dim`. gates: of
    several (multi-gate, MMoE; nn/gates.py) each routes for itself over the same experts, and y has
    a leading axis of them, (gates, ..., D), as all that is reported.
    Further settings are those of `MoEConfig`.

    Products are computed in the type of x; parameters are float32.

    mesh, axes: where the experts lie. Without a mesh the layer is plain JAX on whatever devices x
    is. With one (this argument, or `jax.set_mesh`) it is a shard_map with an exchange of tokens
    over `axes.expert`; axes says what the mesh's names are for: MeshAxes(rows=("batch",),
    expert="model"). Default: the names of moe_jax's own meshes, as far as they are there.
    Rows are split over `rows` and over `expert`, so their number is divisible by both. Axes may be
    of type Auto or Explicit; outputs are sharded as x.
    """

    def __init__(
        self,
        dim: int,
        *,
        experts: int,
        hidden: int,
        rngs: nnx.Rngs,
        router: Router | None = None,
        losses: RoutingLosses | None = None,
        activation: str = "swiglu",
        expert: Expert | None = None,
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        group_size: int | None = None,
        shared: int = 0,
        init_scale: float = 1.0,
        mesh: Mesh | None = None,
        axes: MeshAxes | None = None,
        **settings: Any,
    ):
        config = MoEConfig(
            num_experts=experts,
            expert_dim=hidden,
            router=Mixtral() if router is None else router,
            expert=FeedForward() if expert is None else expert,
            losses=USUAL_LOSSES if losses is None else losses,
            capacity_factor=capacity_factor,
            group_size=group_size,
            num_shared=shared,
            **{"receive_factor": float(experts), **settings},
        )
        _require(config, dim)
        self.dim, self.config, self.eval_capacity_factor = dim, config, eval_capacity_factor
        self.mesh, self.axes = mesh, axes
        self.layer = MoELayer(
            config,
            model_dim=dim,
            activation=activation,
            init_scale=init_scale,
            mesh=None,
            rngs=rngs,
        )
        self.state = nnx.data(
            {
                name: RouterState(value)
                for name, value in self.layer.gates.state(config.router.state(experts)).items()
            }
        )
        if mesh is not None or axes is not None:
            self._lay_out(_axes_of(mesh, axes) if mesh is not None else axes or MeshAxes())

    def __call__(
        self,
        x: Float[Array, "*rows D"],
        *,
        valid: Array | None = None,
        ids: Array | None = None,
        key: Array | None = None,
        train: bool = False,
        routes: bool = False,
        router: Router | None = None,
    ) -> tuple[Float[Array, "*rows D"], Report]:
        """The layer's output, of x's shape and type, and what it did.

        x (..., S, D): rows of S tokens, or (T, D). valid: x's shape without D, False: padding,
        which is not routed (its output is that of the shared experts) and not counted. ids: the
        tokens' ids, for routers that choose by them; of task_level their tasks. key: of the routing
        noise. train: the noise and the capacity of training. routes: report where each token went.
        router: the layer's own with other scalars, which may be traced: `replace(layer.router,
        noise_std=value)`, with dataclasses.replace, follows a schedule without a new compilation.
        ValueError where the sizes do not fit.
        """
        context = Context(
            key=key,
            train=train,
            capacity_factor=(self.config.capacity_factor if train else self.eval_capacity_factor),
            capture=routes,
            router=as_pytree(router or self.config.router),
        )
        mesh = self._mesh()
        explicit = _explicit(mesh)
        if mesh is None or not explicit:
            return self._run(x, valid, ids, context)
        # On a mesh of Explicit axes the layer runs in a region of the program with Auto axes.
        graph, state = nnx.split(self)

        def run(
            state: PyTree[Array],
            x: Array,
            valid: Array | None,
            ids: Array | None,
            context: Context,
        ) -> tuple[Array, Report]:
            return nnx.merge(graph, state)._run(x, valid, ids, context)

        out_sharding = (jax.typeof(x).sharding.spec, PartitionSpec())
        auto = jax.sharding.auto_axes(run, axes=explicit, out_sharding=out_sharding)
        around = mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh  # `mesh=` is not around yet
        with jax.sharding.use_abstract_mesh(around):
            found: tuple[Array, Report] = auto(state, x, valid, ids, context)
        return found

    def _run(
        self, x: Array, valid: Array | None, ids: Array | None, context: Context
    ) -> tuple[Array, Report]:
        mesh = self._mesh()
        place = Place() if mesh is None else Place(mesh=mesh, axes=_axes_of(mesh, self.axes))
        rows, S = self._rows(x.shape)
        if mesh is not None:
            _require_divisible(rows, self.config.num_experts, mesh, place.axes)
        batch = self._batch(rows, S, valid, ids)
        state = {name: variable[...] for name, variable in self.state.items()}
        y_BSD, report = self.layer(
            x.reshape(rows, S, self.dim), batch, context, state, jnp.int32(0), place
        )
        shape = self.layer.gates.shape(*x.shape)
        return y_BSD.reshape(shape), self._report(report, state, S, context.router or self.router)

    @property
    def router(self) -> Router:
        """How tokens choose: a pytree whose leaves are the scalars that may follow a schedule."""
        return as_pytree(self.config.router)

    def update(self, report: Report) -> None:
        """Takes the router's state on, from the report of a call over the whole batch; once a step.
        Nothing for routers without one."""
        for name, value in updated(report).items():
            self.state[name][...] = value

    def _report(self, report: LayerReport, state: State, S: int, router: Router) -> Report:
        pieces = Grouping.of(self.config.group_size, S).pieces
        losses = self.config.losses
        several = self.config.gates > 1

        def loss_of(sums_LG: Sums) -> Array:
            return scoped_loss(losses, router, sums_LG, SCOPES, pieces)

        # Gates stand where layers do: each has its own losses.
        of_layers = jax.tree.map(lambda leaf: leaf if several else leaf[None], report.sums)
        loss = self.config.gating.loss(loss_of, of_layers, losses.over_layers)
        return Report(
            loss=jnp.asarray(loss, jnp.float32),
            sums=reduce_sums(report.sums, axis=int(several)),
            traffic=reduce_sums(report.traffic, axis=int(several)),
            gates=self.config.gating,
            state=state,
            router=router,
            routes=report.routes,
        )

    def _rows(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """x (..., S, D) as so many rows of S tokens."""
        if len(shape) < 2 or shape[-1] != self.dim:
            raise ValueError(f"x is {shape}, and the layer takes (..., tokens, {self.dim})")
        if len(shape) > 2:
            return math.prod(shape[:-2]), shape[-2]
        size = self.config.group_size or shape[0]
        if shape[0] % size:
            raise ValueError(f"{shape[0]} tokens are not whole groups of group_size = {size}")
        return shape[0] // size, size

    def _batch(self, rows: int, S: int, valid: Array | None, ids: Array | None) -> TokenBatch:
        def of_tokens(values: Array) -> Array:
            return values.astype(jnp.int32).reshape(rows, S)

        router = self.config.router
        if router.reads_ids and ids is None:
            raise ValueError(f"{type(router).__name__} routes by the ids of tokens: give ids=")
        position = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32)[None], (rows, S))
        segment = jnp.ones((rows, S), jnp.int32) if valid is None else jnp.asarray(valid)
        return TokenBatch(
            token_BS=None if ids is None else of_tokens(jnp.asarray(ids)),
            position_BS=of_tokens(position),
            segment_BS=of_tokens(segment),
            row_B=jnp.arange(rows, dtype=jnp.int32),
            task_BS=of_tokens(jnp.asarray(ids)) if router.reads_tasks and ids is not None else None,
        )

    def _mesh(self) -> Mesh | AbstractMesh | None:
        """The one around, else the layer's own."""
        around = jax.sharding.get_abstract_mesh()
        # Inside of another's shard_map the axes are not ours to split over.
        manual = any(kind == AxisType.Manual for kind in around.axis_types)
        if manual or (around.empty and self.mesh is None):
            return None
        return self.mesh if around.empty else around

    def _lay_out(self, axes: MeshAxes) -> None:
        """Fills in Flax's own metadata, from which `nnx.get_partition_spec` reads."""
        specs = self.layer.experts.specs(axes)
        for _, variable in nnx.iter_graph(self):
            if isinstance(variable, nnx.Variable):
                variable.set_metadata(out_sharding=())
        for name, spec in specs.items():
            getattr(self.layer.experts, name).set_metadata(out_sharding=tuple(spec))


def _require(config: MoEConfig, dim: int) -> None:
    """ValueError with all that is wrong in the settings."""
    wrong = [f"{problem.path} = {problem.value!r}: {problem.rule}" for problem in check(config)]
    if not wrong:
        E = config.num_experts
        wrong += [f"router.{name}: {rule}" for name, rule in config.router.check_experts(E)]
        if (k := config.router.choices(E)) > E:
            wrong.append(f"router: chooses {k} of experts = {E}")
    if dim < 1:
        wrong.append("dim: must be at least 1")
    if config.ensemble > 1:
        wrong.append("ensemble: belongs to a whole model, not to a layer")
    if wrong:
        raise ValueError("; ".join(wrong))


def _axes_of(mesh: Mesh | AbstractMesh, axes: MeshAxes | None) -> MeshAxes:
    """What the axes of a mesh are for. ValueError where that is not said."""
    names = mesh.axis_names
    if axes is None:
        axes = OURS.there(names)
        if set(names) - set(axes.names()):
            raise ValueError(
                f"which axes of the mesh {dict(mesh.shape)} split what? Say it: "
                f"axes=moe_jax.MeshAxes(rows=({names[0]!r},), expert={names[-1]!r})"
            )
        return axes
    if unknown := sorted(set(axes.names()) - set(names)):
        raise ValueError(f"axes names {', '.join(unknown)}; the mesh has {', '.join(names)}")
    return axes.with_all_rows()


def _require_divisible(rows: int, experts: int, mesh: Mesh | AbstractMesh, axes: MeshAxes) -> None:
    devices = 1 if axes.expert is None else mesh.shape[axes.expert]
    if experts % devices:
        raise ValueError(
            f"{experts} experts are not divisible over the mesh axis {axes.expert!r} of {devices} "
            "devices"
        )
    parts = math.prod(mesh.shape[name] for name in axes.rows)
    if rows % parts:
        raise ValueError(
            f"{rows} rows are not divisible over the mesh axes {axes.rows} of {parts} devices"
        )


def _explicit(mesh: Mesh | AbstractMesh | None) -> tuple[str, ...]:
    """The axes that are part of the types of arrays."""
    if mesh is None:
        return ()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Explicit)
