"""A small state to be saved and restored."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from moe_jax.training.checkpoint import CheckpointConfig, Checkpoints


def mesh(*shape):
    grid = np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(grid, ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def state(step=0, on=None):
    on = on or mesh(4, 2)
    value = jax.random.normal(jax.random.key(step), (16, 8))
    return {
        "params": {"w": jax.device_put(value, NamedSharding(on, PartitionSpec("a", "b")))},
        "half": jnp.arange(4, dtype=jnp.bfloat16),
        "opt_state": (jnp.full((3,), step), {"count": jnp.int32(step)}),
    }


def abstract(tree, on=None):
    on = on or mesh(4, 2)

    def one(leaf):
        spec = PartitionSpec("a", "b") if leaf.ndim == 2 else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(on, spec))

    return jax.tree.map(one, tree)


def restore(folder, on=None, step=None, **config):
    with Checkpoints(folder, CheckpointConfig(**config)) as checkpoints:
        return checkpoints.restore(abstract(state(), on), step=step)
