"""Inputs of routers for the tests: tokens whose logits are themselves."""

from __future__ import annotations

import jax.numpy as jnp

from moe_jax.routing.types import RouterInputs


def inputs(x_TD, key=None, train=False, valid_T=None):
    T = x_TD.shape[0]
    count_T = jnp.arange(T, dtype=jnp.int32)
    return RouterInputs(
        x_TD=jnp.asarray(x_TD, jnp.float32),
        valid_T=jnp.ones((T,), bool) if valid_T is None else jnp.asarray(valid_T),
        id_T=count_T,
        position_T=count_T,
        segment_T=jnp.ones((T,), jnp.int32),
        key=key,
        E=x_TD.shape[1],  # the inputs are logits, or E does not matter
        train=train,
    )


def identity_logits(router, logits_TE, **kwargs):
    """Routes with the kernel I, so that the inputs are the logits."""
    E = logits_TE.shape[1]
    params = {"kernel": jnp.eye(E, dtype=jnp.float32)}
    return router.route(params, {}, inputs(logits_TE, **kwargs))
