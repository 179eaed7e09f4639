"""The state of training: everything that a checkpoint must hold but the place in the data."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import optax
from jaxtyping import Array, Int

from moe_jax.models.network import Params
from moe_jax.models.types import RouterStates


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """step: optimizer steps done, skipped ones included. router_state: what routers keep beside
    their parameters (never seen by the optimizer). bad_steps: steps skipped in a row;
    skipped: in total. probe: expert choices of the last probe batch, (L, B, S, K), -1 before."""

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    router_state: RouterStates
    bad_steps: Int[Array, ""]
    skipped: Int[Array, ""]
    probe: Int[Array, "..."]
