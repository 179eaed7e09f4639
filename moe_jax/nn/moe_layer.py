"""The sparse layer: route, plan, dispatch, in one fully manual `shard_map`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least, kind, one_of
from moe_jax.config.knobs import bind
from moe_jax.dispatch import LAYOUTS, TRANSPORTS, sharded_dispatch
from moe_jax.nn.context import Context, LayerReport, Routes, TokenBatch
from moe_jax.nn.ensemble import Merged
from moe_jax.nn.mlp import MLP
from moe_jax.nn.param import fan_in, parameter
from moe_jax.ops.expert_ffn import GATED, ROW_BACKENDS, ExpertWeights
from moe_jax.ops.linear import linear
from moe_jax.parallel.mesh import ROW_AXES, with_trivial_axes
from moe_jax.routing import ROUTERS, Mixtral
from moe_jax.routing.capacity import ROUNDINGS, expert_capacity
from moe_jax.routing.counterfactual import token_probabilities
from moe_jax.routing.losses import RoutingLosses
from moe_jax.routing.plan import make_plan, plan_traffic, pool, renormalize_kept
from moe_jax.routing.types import (
    LAST_TWO,
    PLACES,
    Assignments,
    Plan,
    Router,
    RouterInputs,
    SoftPlan,
)

TOKENS = PartitionSpec(ROW_AXES, "sequence")
BATCH_SPECS: Any = TokenBatch(  # specs in the places of the arrays
    token_BS=TOKENS,  # type: ignore[arg-type]
    position_BS=TOKENS,  # type: ignore[arg-type]
    segment_BS=TOKENS,  # type: ignore[arg-type]
    row_B=PartitionSpec(ROW_AXES),  # type: ignore[arg-type]
    member_B=PartitionSpec(ROW_AXES),  # type: ignore[arg-type]
    place_BS=TOKENS,  # type: ignore[arg-type]
)


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """The sparse layers of a model.

    every, first: MoE in layers first, first + every, ... (counting from 0), dense elsewhere;
      every=0: nowhere, a dense model.
    expert_dim: hidden width F of one expert. num_shared, shared_dim: experts that see every token.
    latent_dim: width L in which the routed experts work and tokens travel (`Latent`); None: the
      model's width D.
    ensemble: M members, each with E / M of the experts (docs/layers.md); 1: none.
    capacity_factor: None is dropless. group_size: tokens of a routing group, a divisor or a
      multiple of the row length; None: one row.
    layout, transport, receive_factor, matmul: see `dispatch` and `ops.grouped_matmul`.
    overlap_chunks: parts of a device's groups that travel on their own, so that the communication
      of one can run beside the experts of another.
    """

    num_experts: int = 8
    every: int = 1
    first: int = 0
    expert_dim: int = 256
    num_shared: int = 0
    shared_dim: int | None = None  # width of one shared expert; None: expert_dim
    latent_dim: int | None = None
    ensemble: int = 1
    router: Router = kind(ROUTERS, Mixtral)
    losses: RoutingLosses = field(default_factory=RoutingLosses)
    capacity_factor: float | None = None
    capacity_rounding: str = "ceil"
    min_capacity: int = 1
    renormalize_after_drop: bool = False
    group_size: int | None = None
    layout: str = "rows"
    transport: str = "all_to_all"
    receive_factor: float = 2.0
    overlap_chunks: int = 1
    matmul: str = "auto"

    def check(self) -> Iterator[Rule]:
        yield from at_least(self, 1, "num_experts", "expert_dim", "shared_dim", "group_size")
        yield from at_least(self, 1, "min_capacity", "overlap_chunks", "latent_dim", "ensemble")
        yield from at_least(self, 0, "every", "first", "num_shared")
        for name in ("capacity_factor", "receive_factor"):
            if (value := getattr(self, name)) is not None and value <= 0:
                yield name, "must be above 0"
        yield from one_of(self, LAYOUTS, "layout")
        yield from one_of(self, TRANSPORTS, "transport")
        yield from one_of(self, ROUNDINGS, "capacity_rounding")
        yield from one_of(self, ("auto", *ROW_BACKENDS), "matmul")

    def experts_per_token(self, sequence_length: int) -> float:
        """Matrix experts of a token, on average."""
        return self.router.experts_per_token(self.num_experts, self.group_size or sequence_length)

    @property
    def experts_of_one(self) -> int:
        """Experts among which a group chooses: all, or those of its member of an ensemble."""
        return self.num_experts // self.ensemble

    @property
    def choices(self) -> int:
        """Experts that one token may want at the most, over all members of an ensemble."""
        return self.ensemble * self.router.choices(self.num_experts)

    @property
    def causal(self) -> bool:
        """Whether no token's output depends on later tokens through routing. Without capacity
        only the choice itself matters, not the order of service."""
        dropless = self.capacity_factor is None
        return self.router.causal_choice if dropless else self.router.causal


def fine_grained(moe: MoEConfig, m: int) -> MoEConfig:
    """Each expert cut into m: E m experts of width F / m, of which a token chooses k m.

    Fine-grained segmentation, DeepSeekMoE (2401.06066) section 3.1: total and active parameters,
    FLOPs and slots stay as they are, but for the router's E m columns. Shared experts keep their
    width, groups of experts their number. UserError where m does not divide F, and for a router
    without a `k`.
    """
    if m < 1 or moe.expert_dim % m:
        raise UserError(f"moe.expert_dim = {moe.expert_dim} cannot be cut into {m} equal parts")
    router: Any = moe.router
    if "k" not in {f.name for f in dataclasses.fields(router)}:
        raise UserError(f"{type(router).__name__} has no k to multiply by {m}")
    return dataclasses.replace(
        moe,
        num_experts=moe.num_experts * m,
        expert_dim=moe.expert_dim // m,
        shared_dim=moe.shared_dim or moe.expert_dim,
        router=dataclasses.replace(router, k=router.k * m),
    )


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """How a (B, S) batch is cut into groups of T tokens: pieces of a row, or whole rows."""

    T: int
    rows: int  # rows of one group, 1 if it is a piece
    pieces: int  # groups of one row, 1 if a group has whole rows

    @classmethod
    def of(cls, group_size: int | None, S: int) -> Grouping:
        T = group_size or S
        if T % S and S % T:
            raise ValueError(f"group of {T} tokens against rows of {S}: neither divides the other")
        return cls(T=T, rows=max(T // S, 1), pieces=max(S // T, 1))

    def cut(self, x_bs: Array) -> Array:
        """(b, s, ...) of one shard -> (g, T, ...)."""
        return x_bs.reshape(-1, self.T, *x_bs.shape[2:])


class RouterParams(nnx.Module):
    """The parameters that a router asks for, as attributes by name."""

    def __init__(self, router: Router, D: int, E: int, rngs: nnx.Rngs):
        for name, spec in router.params(D, E).items():
            form: dict[str, Any] = dict(matrix=spec.matrix, decays=spec.decays)
            setattr(self, name, parameter(rngs, spec.init, spec.shape, spec.axes, **form))
        self.names = tuple(router.params(D, E))

    def arrays(self) -> dict[str, Array]:
        return {name: getattr(self, name)[...] for name in self.names}


class Latent(nnx.Module):
    """The two projections around the routed experts: down (D, L) before dispatch, up (L, D) behind
    the weighted sum. Neither has a bias, a norm or an activation, as in Nemotron 3.

    LatentMoE, Elango et al. (2601.18089). Kimi K3 has an RMS norm before `up`; we have none.
    """

    def __init__(
        self,
        D: int,
        L: int,
        *,
        init_scale: float,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        init = fan_in(init_scale)
        weights = partial(parameter, rngs, init, dtype=param_dtype, matrix=LAST_TWO, decays=True)
        self.down = weights((D, L), ("embed", "latent"))
        self.up = weights((L, D), ("latent", "embed"))

    def inward(self, x_BSD: Float[Array, "B S D"]) -> Float[Array, "B S L"]:
        return linear(x_BSD, self.down[...])

    def outward(self, z_BSL: Float[Array, "B S L"]) -> Float[Array, "B S D"]:
        return linear(z_BSL, self.up[...])


class Experts(nnx.Module):
    """The weights of all experts: w_gate, w_up (E, D, F), w_down (E, F, D). D is the latent width
    where there is one."""

    def __init__(
        self,
        E: int,
        D: int,
        F: int,
        *,
        activation: str,
        init_scale: float,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        init = fan_in(init_scale, batch_axis=0)
        up_axes, down_axes = ("expert", "embed", "mlp"), ("expert", "mlp", "embed")
        gated = activation in GATED
        weights = partial(parameter, rngs, init, dtype=param_dtype, matrix=LAST_TWO, decays=True)
        self.w_gate = weights((E, D, F), up_axes) if gated else None
        self.w_up = weights((E, D, F), up_axes)
        self.w_down = weights((E, F, D), down_axes)

    def arrays(self) -> dict[str, Array | None]:
        gate = self.w_gate[...] if self.w_gate is not None else None
        return {"w_gate": gate, "w_up": self.w_up[...], "w_down": self.w_down[...]}


# How the experts lie on the mesh: E over expert, F over tensor, D over fsdp.
EXPERT_SPECS = {
    "w_gate": PartitionSpec("expert", "fsdp", "tensor"),
    "w_up": PartitionSpec("expert", "fsdp", "tensor"),
    "w_down": PartitionSpec("expert", "tensor", "fsdp"),
}


class MoELayer(nnx.Module):
    """y = sum over the chosen experts of weight * expert(x), plus the shared experts.

    With `latent_dim` = L: y = (sum of weight * expert(x W_down)) W_up + shared(x). The router, the
    shared experts and what is computed at home (null, copy experts) see the whole width.
    """

    def __init__(
        self,
        config: MoEConfig,
        *,
        model_dim: int,
        activation: str,
        init_scale: float,
        param_dtype: jnp.dtype,
        mesh: Mesh,
        rngs: nnx.Rngs,
    ):
        D, E = model_dim, config.num_experts
        created: dict[str, Any] = dict(init_scale=init_scale, param_dtype=param_dtype, rngs=rngs)
        common = dict(activation=activation, **created)
        self.router = RouterParams(config.router, D, E, rngs)
        self.experts = Experts(E, config.latent_dim or D, config.expert_dim, **common)
        # Shared experts that all see every token are one wider MLP.
        width = config.num_shared * (config.shared_dim or config.expert_dim)
        self.shared = MLP(model_dim=D, hidden_dim=width, **common) if width else None
        L = config.latent_dim
        self.latent = Latent(D, L, **created) if L else None
        self.config, self.activation, self.mesh = config, activation, mesh

    def __call__(
        self,
        x_BSD: Float[Array, "B S D"],
        batch: TokenBatch,
        context: Context,
        router_state: Mapping[str, Array],
        layer: Int[Array, ""],
    ) -> tuple[Float[Array, "B S D"], LayerReport]:
        """Returns the layer's output and its statistics, per routing group; what the router pools,
        per shard of the batch."""
        grouping = Grouping.of(
            None if context.whole_rows else self.config.group_size, x_BSD.shape[1]
        )
        key = None if context.key is None else jax.random.fold_in(context.key, layer)
        group_BP = _group_ids(batch.row_B, grouping)
        whole = PartitionSpec()
        body = _ShardBody(self.config, self.activation, grouping, self.mesh, context)
        experts = {n: w for n, w in self.experts.arrays().items() if w is not None}
        y_BSD, home_BSD, report = jax.shard_map(
            body,
            mesh=self.mesh,
            in_specs=(
                TOKENS,
                TOKENS,
                BATCH_SPECS,
                TOKENS,
                {name: with_trivial_axes(EXPERT_SPECS[name], self.mesh) for name in experts},
                whole,
                whole,
                whole,
                whole,
                TOKENS,
            ),
            out_specs=(TOKENS, TOKENS, TOKENS),
            check_vma=False,
        )(
            x_BSD,
            x_BSD if self.latent is None else self.latent.inward(x_BSD),
            batch,
            group_BP,
            experts,
            self.router.arrays(),
            dict(router_state),
            dict(context.knobs),
            key,
            jax.tree.map(lambda leaf: leaf[layer], context.recorded),
        )
        if self.latent is not None:
            y_BSD = self.latent.outward(y_BSD)
        if home_BSD is not None:
            y_BSD = y_BSD + home_BSD
        if self.shared is not None:
            y_BSD = y_BSD + self.shared(x_BSD)
        return y_BSD, _flatten_groups(report)


def _group_ids(row_B: Int[Array, "B"], grouping: Grouping) -> Int[Array, "U P"]:
    """Global numbers of the groups, laid out so that a shard of rows has its groups' numbers."""
    if grouping.rows > 1:
        return row_B[:: grouping.rows, None] // grouping.rows
    piece_P = jnp.arange(grouping.pieces, dtype=row_B.dtype)
    return row_B[:, None] * grouping.pieces + piece_P[None, :]


def _flatten_groups(report: LayerReport) -> LayerReport:
    """Statistics leave the shard_map as (units, pieces, ...); one leading G from here on."""

    def flat(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)

    return dataclasses.replace(report, sums=flat(report.sums), traffic=flat(report.traffic))


@dataclass(frozen=True)
class _ShardBody:
    """What one device does: the outputs of the matrix experts, of those at home (None without
    any), statistics. x: what routers and experts at home see; z: what the matrix experts see. All
    collectives are `sharded_dispatch`'s."""

    config: MoEConfig
    activation: str
    grouping: Grouping
    mesh: Mesh
    context: Context

    def __call__(
        self, x_bsD, z_bsL, batch, group_bP, experts, router_params, state, knobs, key, recorded_bs
    ):
        config = bind(self.config, knobs, prefix="moe")
        cut = self.grouping.cut
        inputs = RouterInputs(
            x_TD=cut(x_bsD),
            valid_T=cut(batch.segment_BS) > 0,
            id_T=cut(batch.token_BS),
            position_T=cut(batch.position_BS),
            segment_T=cut(batch.segment_BS),
            place_T=cut(_places(*x_bsD.shape[:2]) if batch.place_BS is None else batch.place_BS),
            allowed_E=self._allowed(batch.member_B, group_bP.shape[1]),
            E=config.num_experts,
            train=self.context.train,
        )
        keys_g = None
        if key is not None:
            keys_g = jax.vmap(lambda group: jax.random.fold_in(key, group))(group_bP.reshape(-1))
        inputs = dataclasses.replace(inputs, key=keys_g)
        plan_g, sums_g, traffic_g, home_gTD = jax.vmap(
            lambda inputs, recorded: self._route(config, router_params, state, inputs, recorded)
        )(inputs, jax.tree.map(cut, recorded_bs))
        z_gTL, sent_g, merged = cut(z_bsL), plan_g, None
        if batch.member_B is not None:
            merged = Merged(config.ensemble, group_bP.shape[1])
            z_gTL, sent_g = merged.join(z_gTL), merged.plan(plan_g)
        y_gTL, overflow_g = sharded_dispatch(
            z_gTL,
            sent_g,
            self._weights(experts),
            layout=config.layout,
            transport=config.transport,
            receive_factor=config.receive_factor,
            chunks=config.overlap_chunks,
        )
        if merged is not None:
            y_gTL, overflow_g = merged.split(y_gTL), merged.counts(overflow_g)
        home_bsD = None
        if home_gTD is not None:
            home_bsD = home_gTD.astype(x_bsD.dtype).reshape(x_bsD.shape)
        traffic_g = dataclasses.replace(traffic_g, overflow=overflow_g)
        routes = None
        if self.context.capture:
            prob_gTE = jax.vmap(
                lambda inputs: token_probabilities(config.router, router_params, state, inputs)
            )(inputs)
            most = config.router.choices(config.num_experts)
            routes = _routes(plan_g, prob_gTE, x_bsD.shape[:2], most)
        report = LayerReport(sums=sums_g, traffic=traffic_g)
        report = jax.tree.map(lambda leaf: leaf.reshape(*group_bP.shape, *leaf.shape[1:]), report)
        sums = pool(report.sums, getattr(config.router, "pooled", ()))
        report = dataclasses.replace(report, sums=sums, routes=routes)
        return y_gTL.reshape(z_bsL.shape), home_bsD, report

    def _allowed(self, member_b: Array | None, pieces: int) -> Array | None:
        """(g, E): which experts each group's member of the ensemble has, contiguous ones."""
        if member_b is None:
            return None
        E = self.config.num_experts
        member_E = jnp.arange(E, dtype=member_b.dtype) // (E // self.config.ensemble)
        return jnp.repeat(member_b, pieces)[:, None] == member_E[None, :]

    def _route(self, config, router_params, state, inputs, recorded):
        """One group: router, capacity, statistics, and what is computed at home."""
        router, T, home_TD = config.router, inputs.x_TD.shape[0], None
        what_if = self.context.counterfactual
        if what_if is None:
            decision, sums = router.route(router_params, state, inputs)
        else:
            decision, sums = what_if.route(router, router_params, state, inputs, recorded)
        if isinstance(decision, Assignments):
            if decision.Z:
                home_TD = router.at_home(router_params, inputs, decision)
            capacity = expert_capacity(
                T,
                config.experts_of_one,
                router.experts_per_token(config.num_experts, T),
                self.context.capacity_factor,
                config.capacity_rounding,
                config.min_capacity,
            )
            hard = make_plan(decision, capacity)
            plan = renormalize_kept(hard) if config.renormalize_after_drop else hard
        else:
            plan = decision
        traffic = plan_traffic(plan, inputs.valid_T, inputs.place_T, config.experts_of_one)
        return plan, sums, traffic, home_TD

    def _weights(self, experts: Mapping[str, Array]) -> ExpertWeights:
        """This device's part of the experts."""
        return ExpertWeights(
            w_gate_EDF=experts.get("w_gate"),
            w_up_EDF=experts["w_up"],
            w_down_EFD=experts["w_down"],
            activation=self.activation,
            # By the mesh, which may be of absent devices.
            backend=self.config.matmul,
            platform=self.mesh.devices.flat[0].platform,
        )


def _places(b: int, s: int) -> Int[Array, "b s"]:
    """Which of the PLACES parts of its row each position of this shard is in."""
    S = s * jax.lax.axis_size("sequence")
    position_s = jax.lax.axis_index("sequence") * s + jnp.arange(s, dtype=jnp.int32)
    return jnp.broadcast_to((position_s * PLACES // S)[None, :], (b, s))


def _routes(plan_g: Plan | SoftPlan, prob_gTE: Array, shape: tuple[int, int], most: int) -> Routes:
    """The plan of g groups as K choices for each token of a (b, s) shard, K = `most`."""
    g, _, E = prob_gTE.shape
    unused = E
    if isinstance(plan_g, SoftPlan):
        # Every expert is a column, with what the token takes from its slots.
        weight = jnp.sum(plan_g.combine_TEC, axis=3)
        kept = weight > 0
        expert = jnp.where(kept, jnp.arange(E, dtype=jnp.int32)[None, None, :], E)
    elif (a := plan_g.assignments).k is not None:
        expert, weight, kept = a.expert_R, a.weight_R, plan_g.kept_R
        unused = a.unused
    else:
        # Not in order of tokens: every expert is a column, E marks the ones not chosen.
        group_g1 = jnp.arange(g, dtype=jnp.int32)[:, None]
        at = (group_g1, a.token_R, a.expert_R)
        column_E = jnp.arange(E, dtype=jnp.int32)
        empty = jnp.zeros((g, a.T, E), bool)
        wanted = empty.at[at].set(True, mode="drop")
        expert = jnp.where(wanted, column_E[None, None, :], E)
        weight = jnp.zeros((g, a.T, E), jnp.float32).at[at].add(a.weight_R, mode="drop")
        kept = empty.at[at].set(plan_g.kept_R, mode="drop")
        if most < E:
            # A token has at most so many: those to the front.
            order = jnp.argsort(expert, axis=2)[:, :, :most]
            expert, weight, kept = (
                jnp.take_along_axis(x, order, axis=2) for x in (expert, weight, kept)
            )
    return Routes(
        expert_BSK=expert.reshape(*shape, -1),
        weight_BSK=weight.reshape(*shape, -1),
        kept_BSK=kept.reshape(*shape, -1),
        prob_BSE=prob_gTE.reshape(*shape, -1),
        unused=unused,
    )
