"""What experiments.benchmarks.collective_bytes compiles and counts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax.cli import Arguments
from moe_jax.data.tokenizer import ByteTokenizer
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.collectives import collectives
from moe_jax.parallel.compiler import quick_options
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment

# D differs from E: widths tell tokens from counts.
E, K, D, F, S, LAYERS = 64, 2, 96, 128, 128, 2
CAPACITY_FACTOR, RECEIVE_FACTOR = 1.25, 2.0
ARMS = {
    "all_to_all, slots": dict(
        transport="all_to_all", layout="slots_scatter", capacity_factor=CAPACITY_FACTOR
    ),
    "all_to_all, rows": dict(transport="all_to_all", layout="rows"),
    "gather, rows": dict(transport="gather", layout="rows"),
}


def main(arguments: Arguments) -> int:
    flags = arguments.flags
    counts = [int(count) for count in flags.devices]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(counts))
    rows = [measure(arm, count) for arm in ARMS for count in counts]
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(_cell(row[column]) for column in columns) + " |", flush=True)
    if flags.json:
        Path(flags.json).write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def measure(arm: str, devices: int) -> dict[str, Any]:
    """One row of the table."""
    expert = min(devices, E)
    base = Experiment()
    experiment = replace(
        base,
        batch_size=devices,
        data=replace(base.data, sequence_length=S),
        mesh=MeshConfig(data=devices // expert, expert=expert),
        model=DecoderConfig(
            num_layers=LAYERS, model_dim=D, num_heads=4, num_kv_heads=4, head_dim=24
        ),
        moe=MoEConfig(
            num_experts=E, expert_dim=F, receive_factor=RECEIVE_FACTOR, matmul="reference"
        ),
    )
    experiment = replace(experiment, moe=replace(experiment.moe, **ARMS[arm]))
    program = build(experiment, ByteTokenizer(), devices=jax.devices()[:devices])

    def rows(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=program.batch_sharding)

    B = experiment.batch_size
    raw = {"tokens": rows(B, S + 1), "segments": rows(B, S + 1), "row": rows(B)}
    lowered = program.train_step.lower(program.abstract_state, raw, program.scalars(0))
    compiled = lowered.compile(compiler_options=quick_options(program.mesh))
    exchanges = [
        c
        for c in collectives(compiled.as_text(), program.mesh)
        # Tokens; not the sums of gradients, nor the weights of a plan.
        if c.axes == {"expert"} and c.op != "all-reduce" and c.arrays[0][1][-1:] == (D,)
    ]
    memory = compiled.memory_analysis()
    return {
        "transport": arm,
        "devices": devices,
        "expert": expert,
        "exchanges": sum(c.times for c in exchanges) // LAYERS,
        "compiled bytes": round(sum(c.bytes_sent * c.times for c in exchanges) / LAYERS),
        "formula": round(formula(arm, expert)),
        "state bytes": memory.argument_size_in_bytes,
        "temporary bytes": memory.temp_size_in_bytes,
    }


def formula(arm: str, n: int) -> float:
    """Bytes that one device sends per layer and step, forward and backward (docs/transports.md)."""
    T, b = S, 4
    if arm == "gather, rows":
        return 4 * (n - 1) * T * D * b
    if arm == "all_to_all, slots":
        rows = E * math.ceil(CAPACITY_FACTOR * T * K / E)
    else:
        rows = n * min(T * K, math.ceil(RECEIVE_FACTOR * T * K / n))
    return 4 * (n - 1) / n * rows * D * b


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
