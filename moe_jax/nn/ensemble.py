"""Ensembles of expert groups: the copies of a row, and what becomes of their predictions.

E3, Allingham et al. (2110.03360): the experts fall into M groups, one a member. From the first
sparse layer on every row is there M times; each copy chooses among its member's experts only, all
else is shared. The prediction is the mean of the members' probabilities; in training each member
has its own loss.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.nn.context import LayerReport, TokenBatch
from moe_jax.ops.precision import upcast
from moe_jax.routing.types import Plan, SoftPlan


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


@dataclasses.dataclass(frozen=True)
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


def mean_prediction(logits_N: Float[Array, "N *S V"], members: int) -> Float[Array, "B *S V"]:
    """log of the mean of the members' probabilities, N = B M: normalised logits."""
    log_prob_N = jax.nn.log_softmax(logits_N, axis=-1)
    log_prob_BM = log_prob_N.reshape(-1, members, *logits_N.shape[1:])
    return jax.nn.logsumexp(log_prob_BM, axis=1) - math.log(members)


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
