"""The compiled training step on 64 TPU devices that are not here (make test-aot, extra `tpu`)."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest

from moe_jax.data.tokenizer import IdTokenizer
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.collectives import collectives
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.planning.compiled import lower_step
from moe_jax.planning.estimate import estimate, expert_weights
from moe_jax.planning.hardware import topology_of
from moe_jax.planning.topologies import absent_devices, prepare_environment
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment

prepare_environment()
TOPOLOGY = topology_of("v5e:8x8")
E, F, D, S, LAYERS = 64, 384, 256, 128, 2
MESHES = {
    "expert 8": dict(data=8, expert=8),
    "expert 32": dict(data=2, expert=32),
    "fsdp 2, expert 8, tensor 2": dict(data=2, fsdp=2, expert=8, tensor=2),
}


def experiment_of(mesh):
    base = Experiment()
    return dataclasses.replace(
        base,
        batch_size=64,
        data=dataclasses.replace(base.data, sequence_length=S),
        mesh=MeshConfig(**MESHES[mesh]),
        model=DecoderConfig(
            vocab_size=512,
            num_layers=LAYERS,
            model_dim=D,
            num_heads=4,
            num_kv_heads=4,
            head_dim=64,
            dtype="bfloat16",
        ),
        # Slots compile fastest, and their exchange has nothing beside it.
        moe=MoEConfig(
            num_experts=E, expert_dim=F, capacity_factor=1.0, layout="slots_scatter", group_size=S
        ),
    )


@functools.cache
def compiled(mesh):
    experiment = experiment_of(mesh)
    devices = absent_devices(TOPOLOGY)
    program = build(experiment, IdTokenizer(512), devices=devices)
    exe = lower_step(program).compile()
    return program, exe, collectives(exe.as_text(), program.mesh)


@pytest.mark.parametrize("mesh", MESHES)
def test_step_on_64_devices(mesh):
    program, exe, found = compiled(mesh)
    sizes = program.mesh.shape
    split = sizes["expert"] * sizes["fsdp"] * sizes["tensor"]
    for w in (
        w for experts in expert_weights(program.abstract_state.params) for w in experts.values()
    ):
        assert math.prod(w.sharding.shard_shape(w.shape)) * split == w.size
    told = estimate(program.experiment, 64)
    state = told.parameters + told.optimizer + told.other
    # Beside the state: the batch. TPU layouts pad small arrays.
    assert state <= exe.memory_analysis().argument_size_in_bytes <= 1.1 * state + 2**20
    over_expert = [c for c in found if "expert" in c.axes]
    width = F // sizes["tensor"]
    assert not any({F, width} & set(shape) for c in over_expert for _, shape in c.arrays)
    exchanges = [c for c in over_expert if c.op == "all-to-all" and c.arrays[0][0] == "bf16"]
    assert sum(c.times for c in exchanges) == 4 * LAYERS
    (expected,) = (t.bytes_sent for t in told.traffic if t.axes == ("expert",))
    assert sum(c.bytes_sent * c.times for c in exchanges) == pytest.approx(expected)


def test_memory_falls_as_the_expert_axis_grows():
    small, large = (compiled(mesh)[1].memory_analysis() for mesh in ("expert 8", "expert 32"))
    assert large.temp_size_in_bytes < small.temp_size_in_bytes
    assert large.argument_size_in_bytes < small.argument_size_in_bytes
