"""Small experiments for the tests of rules."""

from __future__ import annotations

import dataclasses

from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.training.experiment import EvalConfig, Experiment

# A mesh in which every axis but data matters; S = 64, E = 8, all sizes fit.
MESH = MeshConfig(data=1, fsdp=2, expert=2, tensor=2, sequence=2)
DEVICES = 16


def experiment(**changes):
    """A good experiment with some dotted values in place of others (moe__k = moe.k)."""
    base = Experiment(
        batch_size=16,
        accumulation=2,
        mesh=MESH,
        model=DecoderConfig(model_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64),
        moe=MoEConfig(num_experts=8, expert_dim=16, group_size=32, every=2),
    )
    base = dataclasses.replace(
        base, data=dataclasses.replace(base.data, sequence_length=64), evaluation=EvalConfig()
    )
    for path, value in changes.items():
        base = replace(base, path.split("__"), value)
    return base


def replace(config, path, value):
    name, *rest = path
    if rest:
        value = replace(getattr(config, name), rest, value)
    return dataclasses.replace(config, **{name: value})
