"""Matching predictions with objects, one to one, at the least cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

WORST = 1e6  # of a cost: beyond it, and where it is no number, all are equally bad


def matched(cost_BQN: Float[Array, "*B Q N"], there_BN: Bool[Array, "*B N"]) -> Int[Array, "*B N"]:
    """The prediction q of each object n, all different, such that the sum of cost[q, n] over the
    objects that are there is the least; Q, which is none, of the others. Q >= N.

    Padded objects are matched too, at no cost with any prediction, which changes no sum of the
    others. The Hungarian algorithm (Kuhn, 1955), as optax has it, on the device; of equal sums
    which is found is not said. Costs have no gradient here. Not a number counts as WORST: the
    algorithm would not end.
    """
    *rows, Q, N = cost_BQN.shape
    if Q < N:
        raise ValueError(f"{Q} predictions cannot be matched with {N} objects, one to one")
    cost_BQN = jax.lax.stop_gradient(cost_BQN)
    cost_BQN = jnp.clip(jnp.nan_to_num(cost_BQN, nan=WORST), -WORST, WORST)
    cost_BQN = jnp.where(there_BN[..., None, :], cost_BQN, 0)
    found_BN = jax.vmap(_of_row)(cost_BQN.reshape(-1, Q, N)).reshape(*rows, N)
    return jnp.where(there_BN, found_BN, Q)


def _of_row(cost_QN: Array) -> Array:
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        prediction_N, object_N = optax.assignment.hungarian_algorithm(cost_QN)
    placed: Array = jnp.zeros(cost_QN.shape[1], jnp.int32).at[object_N].set(prediction_N)
    return placed
