"""Programs on meshes for the tests, and what their compiled steps send."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from moe_jax.data.tokenizer import ByteTokenizer
from moe_jax.models.decoder import DecoderConfig
from moe_jax.parallel.collectives import collectives
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment
from tests.training.steps import MIXTRAL, S

# F is a prime: no other array of the step has a dimension of 22 or of 11 = 22 / tensor.
F, D, E, K, LAYERS, B, T = 22, 16, 8, 2, 2, 16, 16
FACTOR = 1.5
MESHES = {
    "data 8": dict(data=8),
    "data 4, expert 2": dict(data=4, expert=2),
    "data 2, expert 4": dict(data=2, expert=4),
    "expert 8": dict(data=1, expert=8),
    "fsdp 2, expert 4": dict(data=1, fsdp=2, expert=4),
    "expert 4, tensor 2": dict(data=1, expert=4, tensor=2),
    "expert 4, sequence 2": dict(data=1, expert=4, sequence=2),
    "fsdp 2, expert 2, tensor 2": dict(data=1, fsdp=2, expert=2, tensor=2),
}
# Those of other files' tests.
ALL_MESHES = MESHES | {"data 4, tensor 2": dict(data=4, tensor=2)}


@functools.cache
def program_of(mesh, layout="rows", transport="all_to_all", remat="none", **moe):
    base = Experiment()
    if layout != "rows":
        moe |= dict(capacity_factor=1.0)
    experiment = dataclasses.replace(
        base,
        batch_size=B,
        data=dataclasses.replace(base.data, sequence_length=S),
        mesh=MeshConfig(**ALL_MESHES[mesh]),
        model=DecoderConfig(
            vocab_size=264,
            num_layers=LAYERS,
            model_dim=D,
            num_heads=4,
            num_kv_heads=2,
            head_dim=4,
            mlp_dim=32,
            remat=remat,
        ),
        moe=dataclasses.replace(
            MIXTRAL,
            **{
                "expert_dim": F,
                "receive_factor": FACTOR,
                "group_size": T,
                "layout": layout,
                "transport": transport,
                **moe,
            },
        ),
    )
    return build(experiment, ByteTokenizer())


@functools.cache
def compiled(mesh, *args, **kwargs):
    program = program_of(mesh, *args, **kwargs)

    def rows(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=program.batch_sharding)

    raw = {"tokens": rows(B, S + 1), "segments": rows(B, S + 1), "row": rows(B)}
    return program.train_step.lower(program.abstract_state, raw, program.scalars(0)).compile()


def sent(mesh, *args, **kwargs):
    program = program_of(mesh, *args, **kwargs)
    return collectives(compiled(mesh, *args, **kwargs).as_text(), program.mesh)


def moves_no_weight(found):
    """Over `expert` go rows, counts, plans, and sums of gradients of what all devices share."""
    for c in (c for c in found if "expert" in c.axes):
        for _, shape in c.arrays:
            assert F not in shape and F // 2 not in shape, c
            is_small = math.prod(shape) <= B * (S + 1)
            assert c.op in ("all-to-all", "all-reduce") or is_small or shape[-1] in (D, D // 2), c


def exchanges(found, op="all-to-all"):
    """(bytes, times) of the operations over `expert` that move floats, by size."""
    totals = {}
    for c in found:
        if c.op == op and c.arrays[0][0] == "f32" and c.axes == {"expert"}:
            totals[c.result_bytes] = totals.get(c.result_bytes, 0) + c.times
    return totals
