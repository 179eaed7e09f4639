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
from moe_jax.ops.precision import wide


def repeat_rows(x_B: Array, members: int) -> Array:
    """(B, ...) -> (B M, ...), the copies of a row beside each other, so that no row moves between
    devices. The gradient is summed over the copies in float32."""
    floating = jnp.issubdtype(x_B.dtype, jnp.floating)
    wide_B = wide(x_B) if floating else x_B
    copied = jnp.broadcast_to(wide_B[:, None], (x_B.shape[0], members, *x_B.shape[1:]))
    return copied.astype(x_B.dtype).reshape(-1, *x_B.shape[1:])


def copies(batch: TokenBatch, members: int) -> TokenBatch:
    """The batch with M copies of each row; each has a number of its own, and so its own noise."""
    repeated: TokenBatch = jax.tree.map(lambda leaf: repeat_rows(leaf, members), batch)
    member_B = jnp.arange(repeated.row_B.shape[0], dtype=repeated.row_B.dtype) % members
    return dataclasses.replace(
        repeated, row_B=repeated.row_B * members + member_B, member_B=member_B
    )


def mean_prediction(logits_NSV: Float[Array, "N S V"], members: int) -> Float[Array, "B S V"]:
    """log of the mean of the members' probabilities, N = B M: normalised logits."""
    log_prob_NSV = jax.nn.log_softmax(logits_NSV, axis=-1)
    log_prob_BMSV = log_prob_NSV.reshape(-1, members, *logits_NSV.shape[1:])
    return jax.nn.logsumexp(log_prob_BMSV, axis=1) - math.log(members)


def join_members(report: LayerReport | None, members: int) -> LayerReport | None:
    """Routes with the choices of all members side by side, K M of them, weights over M."""
    if report is None or report.routes is None:
        return report
    routes = report.routes

    def beside(leaf: Array) -> Array:
        L, N, S, K = leaf.shape
        apart = leaf.reshape(L, N // members, members, S, K)
        return jnp.moveaxis(apart, 2, 3).reshape(L, N // members, S, members * K)

    prob = routes.prob_BSE
    joined = dataclasses.replace(
        routes,
        expert_BSK=beside(routes.expert_BSK),
        weight_BSK=beside(routes.weight_BSK) / members,
        kept_BSK=beside(routes.kept_BSK),
        prob_BSE=jnp.mean(prob.reshape(prob.shape[0], -1, members, *prob.shape[2:]), axis=2),
    )
    return dataclasses.replace(report, routes=joined)
