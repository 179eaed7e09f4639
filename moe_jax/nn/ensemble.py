"""Ensembles of expert groups: all that there is to them, behind `Ensemble`.

E3, Allingham et al. (2110.03360): the experts fall into M groups, one a member. From the first
sparse layer on every row is there M times; each copy chooses among its member's experts only, all
else is shared. The prediction is the mean of the members' probabilities; in training each member
has its own loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.config.fields import Rule
from moe_jax.nn.context import LayerReport, TokenBatch
from moe_jax.nn.cost import Cost
from moe_jax.nn.predictions import (
    BoxPredictions,
    ClassLogits,
    GivenLogits,
    LabelLogits,
    PixelLogits,
    Predictions,
    TargetValues,
)
from moe_jax.ops.precision import upcast
from moe_jax.routing.losses import OF_ONE_MEMBER, RoutingLosses
from moe_jax.routing.types import Plan, Router, SoftPlan

AnyPlan = Plan | SoftPlan
AnyPredictions = (
    Predictions
    | GivenLogits
    | ClassLogits
    | LabelLogits
    | PixelLogits
    | BoxPredictions
    | TargetValues
)
# (tokens of groups, their plans) -> (their outputs, rows without room by group)
Dispatch = Callable[[Array, AnyPlan], tuple[Array, Array]]


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """M members (`config.moe.ensemble`). Of one there is nothing: every method gives back what it
    is given.

    Where it takes part: the rules of a config (`fits`), the step of a model into its first sparse
    part (`enter`) and out of its last layer (`joined`, `joined_report`), what a group may choose
    (`allowed`), the way to the experts and back (`dispatched`), what it all costs (`cost`).
    """

    members: int = 1

    def fits(
        self,
        num_experts: int,
        router: Router,
        losses: RoutingLosses,
        group_size: int | None,
        row_length: int,
    ) -> Iterator[Rule]:
        """The rules of the sparse layers around it: (path below `moe`, rule)."""
        M = self.members
        if M < 2:
            return
        if num_experts % M:
            yield "ensemble", f"must divide moe.num_experts = {num_experts}"
        elif getattr(router, "k", 1) > (own := num_experts // M):
            yield "router.k", f"must be at most the {own} experts of one of the {M} members"
        if not router.takes_mask:
            yield "ensemble", "must be 1: this router cannot choose among some of the experts"
        balance = losses.device_balance
        if balance.scope in OF_ONE_MEMBER and balance.groups % M and balance.groups > 1:
            rule = f"must be divisible by moe.ensemble = {M} with scope {balance.scope}"
            yield "losses.device_balance.groups", rule
        if (group_size or 0) > row_length > 0:
            rule = "must be at most one row in an ensemble: each copy of a row has its own experts"
            yield "group_size", rule

    def cost(self, cost: Cost) -> Cost:
        """Of layers that every copy of a token runs through; their parameters are there once."""
        M = self.members
        return dataclasses.replace(
            cost,
            multiplied=M * cost.multiplied,
            attended=M * cost.attended,
            routed=M * cost.routed,
        )

    def rows(self, leaf_B: Array) -> Array:
        """What is given of each row, for each of its copies: (B, ...) -> (B M, ...)."""
        return leaf_B if self.members == 1 else repeat_rows(leaf_B, self.members)

    def enter(
        self, x_BSD: Float[Array, "B S D"], batch: TokenBatch
    ) -> tuple[Float[Array, "N S D"], TokenBatch]:
        """The tokens of all copies, N = B M rows, and the batch with each copy's member."""
        if self.members == 1:
            return x_BSD, batch
        return repeat_rows(x_BSD, self.members), copies(batch, self.members)

    def joined(self, predictions: AnyPredictions) -> AnyPredictions:
        """The prediction of the whole: the mean of the members' probabilities."""
        if self.members == 1:
            return predictions
        return predictions.averaged(self.members)

    def joined_report(self, report: LayerReport | None) -> LayerReport | None:
        """The routes of a row's copies as those of the row."""
        return report if self.members == 1 else join_members(report, self.members)

    def allowed(
        self, member_b: Int[Array, "b"] | None, pieces: int, E: int
    ) -> Bool[Array, "g E"] | None:
        """Which experts each group's member has, contiguous ones; None: all. pieces: groups of a
        row."""
        if member_b is None:
            return None
        member_E = jnp.arange(E, dtype=member_b.dtype) // (E // self.members)
        return jnp.repeat(member_b, pieces)[:, None] == member_E[None, :]

    def dispatched(
        self, dispatch: Dispatch, z_gTL: Array, plan_g: AnyPlan, pieces: int
    ) -> tuple[Array, Array]:
        """dispatch(z, plan), with the copies of the same tokens side by side."""
        if self.members == 1:
            return dispatch(z_gTL, plan_g)
        merged = Merged(self.members, pieces)
        y_gTL, overflow_g = dispatch(merged.join(z_gTL), merged.plan(plan_g))
        return merged.split(y_gTL), merged.counts(overflow_g)


def repeat_rows(x_B: Array, members: int) -> Array:
    """(B, ...) -> (B M, ...), the copies of a row beside each other, so that no row moves between
    devices. The gradient is summed over the copies in float32."""
    floating = jnp.issubdtype(x_B.dtype, jnp.floating)
    upcast_B = upcast(x_B) if floating else x_B
    copied = jnp.broadcast_to(upcast_B[:, None], (x_B.shape[0], members, *x_B.shape[1:]))
    return copied.astype(x_B.dtype).reshape(-1, *x_B.shape[1:])


def copies(batch: TokenBatch, members: int) -> TokenBatch:
    """The batch with M copies of each row; each has a number of its own, and so its own noise."""
    repeated: TokenBatch = jax.tree.map(lambda leaf: repeat_rows(leaf, members), batch)
    member_B = jnp.arange(repeated.row_B.shape[0], dtype=repeated.row_B.dtype) % members
    return dataclasses.replace(
        repeated, row_B=repeated.row_B * members + member_B, member_B=member_B
    )


@dataclass(frozen=True)
class Merged:
    """Groups in which the M copies of the same tokens lie side by side: (b M P, T, ...) and
    (b P, M T, ...), with P groups a row.

    The copies have no expert in common, so one buffer of C slots an expert holds what all of them
    send; by group M - 1 of M slots would be of experts that the copy may not choose.
    """

    members: int
    pieces: int

    def join(self, leaf_gT: Array) -> Array:
        g, T, *rest = leaf_gT.shape
        by_member = leaf_gT.reshape(-1, self.members, self.pieces, T, *rest)
        return jnp.moveaxis(by_member, 1, 2).reshape(g // self.members, self.members * T, *rest)

    def split(self, leaf_gT: Array) -> Array:
        g, T, *rest = leaf_gT.shape
        joined = leaf_gT.reshape(-1, self.pieces, self.members, T // self.members, *rest)
        return jnp.moveaxis(joined, 2, 1).reshape(g * self.members, T // self.members, *rest)

    def plan(self, plan_g: Plan | SoftPlan) -> Plan:
        """One plan for all copies; slots stay what they are, also where they are T a group."""
        if isinstance(plan_g, SoftPlan):
            raise TypeError("the slots of a soft plan belong to one group: no ensemble")
        a = plan_g.assignments
        R = a.token_R.shape[1]
        member_R = jnp.repeat(jnp.arange(self.members, dtype=a.token_R.dtype), R)
        merged = dataclasses.replace(
            a,
            token_R=self.join(a.token_R) + (member_R * a.T)[None, :],
            expert_R=self.join(a.expert_R),
            weight_R=self.join(a.weight_R),
            priority_R=None if a.priority_R is None else self.join(a.priority_R),
            T=self.members * a.T,
            c=None,
        )
        accepted = plan_g.accepted_E.reshape(-1, self.members, self.pieces, a.E)
        return dataclasses.replace(
            plan_g,
            assignments=merged,
            slot_R=self.join(plan_g.slot_R),
            kept_R=self.join(plan_g.kept_R),
            accepted_E=jnp.sum(accepted, axis=1, dtype=jnp.int32).reshape(-1, a.E),
            capacity=plan_g.slots,
        )

    def counts(self, count_g: Array) -> Array:
        """Counts of joined groups as those of the first copy's groups."""
        joined = count_g.reshape(-1, 1, self.pieces)
        return jnp.pad(joined, ((0, 0), (0, self.members - 1), (0, 0))).reshape(-1)


def join_members(report: LayerReport | None, members: int) -> LayerReport | None:
    """Routes with the choices of all members side by side, K M of them, weights over M."""
    if report is None or report.routes is None:
        return report
    routes = report.routes

    def beside(leaf: Array) -> Array:
        L, N, S, K = leaf.shape
        by_member = leaf.reshape(L, N // members, members, S, K)
        return jnp.moveaxis(by_member, 2, 3).reshape(L, N // members, S, members * K)

    prob = routes.prob_BSE
    joined = dataclasses.replace(
        routes,
        expert_BSK=beside(routes.expert_BSK),
        weight_BSK=beside(routes.weight_BSK) / members,
        kept_BSK=beside(routes.kept_BSK),
        prob_BSE=jnp.mean(prob.reshape(prob.shape[0], -1, members, *prob.shape[2:]), axis=2),
    )
    return dataclasses.replace(report, routes=joined)
