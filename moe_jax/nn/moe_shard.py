"""What one device does in a sparse layer: route, plan, dispatch, combine.

The formula of the layer, for the groups of tokens of this device. All collectives are
`sharded_dispatch`'s; without a mesh there are none, and this is the whole layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from moe_jax.dispatch import gathered_weights, sharded_dispatch
from moe_jax.experts.types import Networks
from moe_jax.nn.context import LayerReport, Routes, Switches, TokenBatch
from moe_jax.nn.moe_config import Grouping, MoEConfig
from moe_jax.parallel.axes import MeshAxes, axis_index, axis_size
from moe_jax.routing.capacity import expert_capacity
from moe_jax.routing.counterfactual import rerouted, token_probabilities
from moe_jax.routing.plan import make_plan, plan_traffic, pool, renormalize_kept
from moe_jax.routing.types import (
    ROW_PARTS,
    Assignments,
    Plan,
    Recorded,
    Router,
    RouterInputs,
    SoftPlan,
    Sums,
    Traffic,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ShardArguments:
    """The arrays of one call: whole ones outside of the shard_map, this device's part inside.

    x: what routers and undispatched experts see; z: what the matrix experts see. router: the rule,
    with the scalars of this step; params, state: its own. asked: of several gates, those whose
    outputs are wanted; None: all.
    """

    x_BSD: Float[Array, "*K B S D"]
    z_BSL: Float[Array, "*K B S L"]
    batch: TokenBatch
    group_BP: Int[Array, "B P"]  # numbers of the routing groups
    experts: Mapping[str, Array]
    router: Router
    params: Mapping[str, Array]
    state: Mapping[str, Array]
    key: Key[Array, ""] | None
    recorded: Recorded | None
    asked_K: Bool[Array, "K"] | None = None

    @staticmethod
    def specs(
        axes: MeshAxes, experts: Mapping[str, PartitionSpec], streams: bool, gates: bool
    ) -> ShardArguments:
        """How each of them lies on the mesh. streams: x is of each gate. gates: there are
        several."""
        replicated = PartitionSpec()
        of_gates = PartitionSpec(None, *axes.tokens)
        batch = TokenBatch(  # specs in the places of the arrays
            token_BS=axes.tokens,  # type: ignore[arg-type]
            position_BS=axes.tokens,  # type: ignore[arg-type]
            segment_BS=axes.tokens,  # type: ignore[arg-type]
            row_B=axes.by_row,  # type: ignore[arg-type]
            member_B=axes.by_row,  # type: ignore[arg-type]
            row_part_BS=axes.tokens,  # type: ignore[arg-type]
            task_BS=axes.tokens,  # type: ignore[arg-type]
        )
        return ShardArguments(
            x_BSD=of_gates if streams else axes.tokens,  # type: ignore[arg-type]
            z_BSL=of_gates if streams else axes.tokens,  # type: ignore[arg-type]
            batch=batch,
            group_BP=axes.tokens,  # type: ignore[arg-type]
            experts=dict(experts),  # type: ignore[arg-type]
            router=replicated,  # type: ignore[arg-type]
            params=replicated,  # type: ignore[arg-type]
            state=replicated,  # type: ignore[arg-type]
            key=replicated,  # type: ignore[arg-type]
            recorded=of_gates if gates else axes.tokens,  # type: ignore[arg-type]
            asked_K=replicated,  # type: ignore[arg-type]
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ShardOutputs:
    """y: of the matrix experts; undispatched: of the others, None without any; the statistics. Of
    several gates all leaves have a leading axis of them."""

    y_BSL: Float[Array, "B S L"]
    undispatched_BSD: Float[Array, "B S D"] | None
    report: LayerReport


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Routed:
    """What was decided of a group, and what its undispatched experts give."""

    plan: Plan | SoftPlan
    sums: Sums
    traffic: Traffic
    undispatched_TD: Float[Array, "*g T D"] | None


@dataclass(frozen=True, kw_only=True)
class ShardBody:
    """The static parts of the layer; called with the arrays of this device.

    platform: of the devices, which may be absent ones.
    """

    config: MoEConfig
    activation: str
    grouping: Grouping
    axes: MeshAxes
    switches: Switches
    platform: str | None = None

    def __call__(self, a: ShardArguments) -> ShardOutputs:
        router = rerouted(a.router, self.switches.counterfactual)
        inputs = self._inputs(a)
        gates = self.config.gating
        routed = gates.each(
            partial(self._route, router), inputs, a.params, a.state, asked_K=a.asked_K
        )
        y_gTL, overflow_g = self._through_experts(a, routed.plan)
        undispatched_bsD = None
        if routed.undispatched_TD is not None:
            undispatched_TD = routed.undispatched_TD.astype(a.x_BSD.dtype)
            undispatched_bsD = undispatched_TD.reshape(gates.shape(*a.x_BSD.shape[-3:]))
        traffic_g = routed.traffic
        traffic_g = dataclasses.replace(traffic_g, overflow=overflow_g)
        routes = self._routes(router, a, inputs, routed.plan) if self.switches.capture else None
        report = LayerReport(sums=routed.sums, traffic=traffic_g)
        shape = gates.shape(*a.group_BP.shape)
        report = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), report)
        sums = gates.mapped(lambda sums: pool(sums, router.pooled), report.sums)
        return ShardOutputs(
            y_BSL=y_gTL.reshape(gates.shape(*a.z_BSL.shape[-3:])),
            undispatched_BSD=undispatched_bsD,
            report=dataclasses.replace(report, sums=sums, routes=routes),
        )

    def _inputs(self, a: ShardArguments) -> RouterInputs:
        """What routers see of each group, leaves (g, T, ...)."""
        config, batch, cut, keys_g = self.config, a.batch, self.grouping.cut, None
        of_gates = jax.vmap(cut)
        if a.key is not None:
            key = a.key
            groups = a.group_BP.reshape(-1)
            keys_g = jax.vmap(lambda group: jax.random.fold_in(key, group))(groups)
        row_part_bs = batch.row_part_BS
        if row_part_bs is None:
            b, s = a.x_BSD.shape[-3:-1]
            row_part_bs = _row_parts(b, s, self.axes.sequence)
        return RouterInputs(
            x_TD=of_gates(a.x_BSD) if config.gating.streams(a.x_BSD) else cut(a.x_BSD),
            valid_T=cut(batch.segment_BS) > 0,
            id_T=None if batch.token_BS is None else cut(batch.token_BS),
            position_T=cut(batch.position_BS),
            segment_T=cut(batch.segment_BS),
            row_part_T=cut(row_part_bs),
            allowed_E=config.members.allowed(
                batch.member_B, a.group_BP.shape[1], config.num_experts
            ),
            task_T=None if batch.task_BS is None else cut(batch.task_BS),
            recorded=jax.tree.map(of_gates if config.gates > 1 else cut, a.recorded),
            key=keys_g,
            E=config.num_experts,
            train=self.switches.train,
        )

    def _route(
        self,
        router: Router,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        inputs: RouterInputs,
    ) -> Routed:
        """One group: router, capacity, statistics, and what is undispatched."""
        config, T, undispatched_TD = self.config, inputs.x_TD.shape[0], None
        decision, sums = router.route(params, state, inputs)
        plan: Plan | SoftPlan
        if isinstance(decision, Assignments):
            if decision.Z:
                undispatched_TD = router.undispatched(params, inputs, decision)
            capacity = expert_capacity(
                T,
                config.experts_of_one,
                router.experts_per_token(config.num_experts, T),
                self.switches.capacity_factor,
                config.capacity_rounding,
                config.min_capacity,
            )
            hard = make_plan(decision, capacity)
            plan = renormalize_kept(hard) if config.renormalize_after_drop else hard
        else:
            plan = decision
        traffic = plan_traffic(plan, inputs.valid_T, inputs.row_part_T, config.experts_of_one)
        return Routed(plan=plan, sums=sums, traffic=traffic, undispatched_TD=undispatched_TD)

    def _through_experts(
        self, a: ShardArguments, plan_g: Plan | SoftPlan
    ) -> tuple[Float[Array, "g T L"], Int[Array, "g"]]:
        """The weighted outputs of each token's experts; per group, the rows without room."""
        config = self.config
        dispatch = partial(
            sharded_dispatch,
            experts=self._networks(a.experts, a.z_BSL.dtype),
            layout=config.layout,
            transport=config.transport,
            receive_factor=config.receive_factor,
            chunks=config.overlap_chunks,
            axes=self.axes,
        )
        cut, gates = self.grouping.cut, config.gating
        if gates.number > 1:
            z_gTL = jax.vmap(cut)(a.z_BSL) if gates.streams(a.z_BSL) else cut(a.z_BSL)
            return gates.dispatched(dispatch, z_gTL, plan_g)
        return config.members.dispatched(dispatch, cut(a.z_BSL), plan_g, a.group_BP.shape[1])

    def _networks(self, experts: Mapping[str, Array], dtype: jnp.dtype) -> Networks:
        """This device's experts, gathered just before use."""
        config, axes = self.config, self.axes
        # Only the axes of the specs are read, so the width does not matter.
        specs = config.expert_params(1, self.activation)
        weights = gathered_weights(experts, specs, dtype, axes.fsdp)
        expert = config.expert.completed(self.activation)
        return expert.networks(weights, config.matmul, self.platform, axes.tensor)

    def _routes(
        self, router: Router, a: ShardArguments, inputs: RouterInputs, plan_g: Plan | SoftPlan
    ) -> Routes:
        gates = self.config.gating
        prob_gTE = gates.each(
            partial(token_probabilities, router), inputs, a.params, a.state, asked_K=a.asked_K
        )
        most = router.choices(self.config.num_experts)
        return _routes(plan_g, prob_gTE, gates.shape(*a.x_BSD.shape[-3:-1]), most)


def _row_parts(b: int, s: int, sequence: str | None) -> Int[Array, "b s"]:
    """Which of the ROW_PARTS parts of its row each position of this shard is in."""
    S = s * axis_size(sequence)
    position_s = axis_index(sequence) * s + jnp.arange(s, dtype=jnp.int32)
    return jnp.broadcast_to((position_s * ROW_PARTS // S)[None, :], (b, s))


def _routes(plan_g: Plan | SoftPlan, prob_gTE: Array, shape: tuple[int, ...], most: int) -> Routes:
    """The plan of g groups as K choices for each token of a (b, s) shard, K = `most`."""
    g, _, E = prob_gTE.shape
    unused = E
    if isinstance(plan_g, SoftPlan):
        # Every expert is a column; its weight is what the token takes from its slots.
        weight = jnp.sum(plan_g.combine_TEC, axis=3)
        kept = weight > 0
        expert = jnp.where(kept, jnp.arange(E, dtype=jnp.int32)[None, None, :], E)
    elif (a := plan_g.assignments).k is not None:
        expert, weight, kept = a.expert_R, a.weight_R, plan_g.kept_R
        unused = a.unused
    else:
        # Rows not in the order of tokens: every expert is a column; E marks those not chosen.
        group_g1 = jnp.arange(g, dtype=jnp.int32)[:, None]
        at = (group_g1, a.token_R, a.expert_R)
        column_E = jnp.arange(E, dtype=jnp.int32)
        empty = jnp.zeros((g, a.T, E), bool)
        wanted = empty.at[at].set(True, mode="drop")
        expert = jnp.where(wanted, column_E[None, None, :], E)
        weight = jnp.zeros((g, a.T, E), jnp.float32).at[at].add(a.weight_R, mode="drop")
        kept = empty.at[at].set(plan_g.kept_R, mode="drop")
        if most < E:
            # Move the experts that a token has to the front; it has at most `most`.
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
