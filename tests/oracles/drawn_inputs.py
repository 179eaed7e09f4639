"""Drawn inputs for routers of other codebases."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from moe_jax.routing.types import RouterInputs

T, D, E = 48, 16, 8


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def router_inputs(x_TD, valid_T):
    place_T = jnp.arange(x_TD.shape[0], dtype=jnp.int32)
    return RouterInputs(
        x_TD=x_TD,
        valid_T=valid_T,
        id_T=place_T,
        position_T=place_T,
        segment_T=valid_T.astype(jnp.int32),
        E=E,
    )
