"""The compiled training step on 64 TPU devices that are not here (make test-aot, extra `tpu`)."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import pytest

from moe_jax.data.tokenizer import IdTokenizer
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.collectives import collectives
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.planning.compiled import compile_step, lower_step
from moe_jax.planning.estimate import estimate, expert_weights
from moe_jax.planning.hardware import topology_of
from moe_jax.planning.topologies import absent_devices, prepare_environment
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment

prepare_environment()
# A program for absent devices can be stored but not read back.
jax.config.update("jax_enable_compilation_cache", False)
TOPOLOGY = topology_of("v5p:4x4x4")
E, F, D, S, LAYERS = 64, 384, 256, 128, 2
MESHES = {
    "expert 8": dict(data=8, expert=8),
    "expert 32": dict(data=2, expert=32),
    "fsdp 2, expert 8, tensor 2": dict(data=2, fsdp=2, expert=8, tensor=2),
}
SLOTS = dict(layout="slots_scatter", capacity_factor=1.0)
ROWS = dict(layout="rows", receive_factor=2.0)


def experiment_of(mesh, rows=1, **moe):
    base = Experiment()
    return dataclasses.replace(
        base,
        batch_size=64 * rows,
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
        # Slots compile fastest.
        moe=MoEConfig(**{**SLOTS, "num_experts": E, "expert_dim": F, "group_size": S, **moe}),
    )


@functools.cache
def compiled(mesh, **settings):
    experiment = experiment_of(mesh, **settings)
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
    message = estimate(program.experiment, 64, "tpu")
    state = message.parameters + message.optimizer + message.other
    # Beside the state: the batch. TPU layouts pad small arrays.
    assert state <= exe.memory_analysis().argument_size_in_bytes <= 1.1 * state + 2**20
    over_expert = [c for c in found if "expert" in c.axes]
    assert_no_weights(over_expert, F // sizes["tensor"])
    exchanges = [c for c in over_expert if c.op == "all-to-all" and c.arrays[0][0] == "bf16"]
    assert sum(c.times for c in exchanges) == 4 * LAYERS
    (expected,) = (t.bytes_sent for t in message.traffic if t.what == "tokens to experts")
    assert sum(c.bytes_sent * c.times for c in exchanges) == pytest.approx(expected)


def assert_no_weights(collectives, width):
    assert not any({F, width} & set(shape) for c in collectives for _, shape in c.arrays)


@pytest.mark.parametrize(
    ("transport", "op", "layout"),
    [
        ("all_to_all", "all-to-all", ROWS),
        ("ragged", "ragged-all-to-all", ROWS),
        ("gather", "all-gather", SLOTS),
    ],
)
def test_other_transports_on_64_devices(transport, op, layout):
    """Exchanges and bytes by the formula; ragged buffers hold at most what the formula bounds."""
    program, _, found = compiled("expert 8", transport=transport, **layout)
    over_expert = [c for c in found if c.axes == {"expert"}]
    assert_no_weights(over_expert, F)
    moved = [c for c in over_expert if c.arrays[0][0] == "bf16" and c.op != "all-reduce"]
    assert {c.op for c in moved} <= {op, "reduce-scatter"}
    assert sum(c.times for c in moved) == 4 * LAYERS
    message = estimate(program.experiment, 64, "tpu")
    expected = sum(t.bytes_sent for t in message.traffic if t.what == "tokens to experts")
    sent = sum(c.bytes_sent * c.times for c in moved)
    if transport == "ragged":
        assert expected <= sent <= 2 * expected  # receive_factor
    else:
        assert sent == pytest.approx(expected)


def test_what_a_topology_cannot_do_is_told():
    """The links of a v5e pod do not carry ragged exchanges."""
    pod = topology_of("v5e:8x8")
    found = compile_step(experiment_of("expert 8", transport="ragged", **ROWS), absent_devices(pod))
    assert found.refused and "Ragged all-to-all" in found.refused


def test_chunks_overlap():
    """With two chunks every exchange is asynchronous, and some run beside matrix products."""
    program, _, found = compiled("expert 8", rows=4, overlap_chunks=2)
    exchanges = [c for c in found if c.op == "all-to-all" and c.arrays[0][1][-1] == D]
    assert sum(c.times for c in exchanges) == 2 * 4 * LAYERS
    assert all(c.asynchronous for c in exchanges)
    assert sum(c.times for c in exchanges if c.beside) >= LAYERS
    (expected,) = (
        t.bytes_sent
        for t in estimate(program.experiment, 64, "tpu").traffic
        if t.what == "tokens to experts"
    )
    assert sum(c.bytes_sent * c.times for c in exchanges) == pytest.approx(expected)


def test_memory_falls_as_the_expert_axis_grows():
    small, large = (compiled(mesh)[1].memory_analysis() for mesh in ("expert 8", "expert 32"))
    assert large.temp_size_in_bytes < small.temp_size_in_bytes
    assert large.argument_size_in_bytes < small.argument_size_in_bytes
