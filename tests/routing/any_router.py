"""Inputs and parameters for a router of any kind."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moe_jax.routing.types import RouterInputs

T, D = 24, 8
E = 6


def parameters(router, num_experts=E, seed=1):
    specs = router.params(D, num_experts)
    keys = jax.random.split(jax.random.key(seed), len(specs))
    # Not the spec's own init: some start from zeros, where every choice is a tie.
    return {
        name: jax.random.normal(key, spec.shape)
        for (name, spec), key in zip(specs.items(), keys, strict=True)
    }


def inputs(seed=0, tokens=T, dtype=jnp.float32, train=True, padding=0, num_experts=E):
    count_T = jnp.arange(tokens, dtype=jnp.int32)
    valid_T = count_T < tokens - padding
    return RouterInputs(
        x_TD=jax.random.normal(jax.random.key(seed), (tokens, D)).astype(dtype),
        valid_T=valid_T,
        id_T=count_T,
        position_T=count_T,
        segment_T=valid_T.astype(jnp.int32),
        row_part_T=count_T * 8 // tokens,
        task_T=count_T % 3,
        key=jax.random.key(7) if train else None,
        E=num_experts,
        train=train,
    )
