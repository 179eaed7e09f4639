"""What experiments.benchmarks.train_step measures."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.peers import TorchPeer
from experiments.benchmarks.plot import draw
from experiments.benchmarks.timing import add_results, interleaved, limits
from experiments.benchmarks.train_step import SIZES
from moe_jax.cli import Arguments
from moe_jax.data.tokenizer import IdTokenizer
from moe_jax.models.decoder import DecoderConfig
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.host_memory import keep_freed_memory
from moe_jax.routing import Mixtral
from moe_jax.routing.losses import LoadBalance, RoutingLosses
from moe_jax.training.build import Program, build
from moe_jax.training.experiment import Experiment
from moe_jax.training.optimizer import AdamW

BALANCE = 0.01


def program_of(size: dict[str, int], dtype: str = "float32") -> Program:
    """Our training step at these dimensions, on one device. dtype: of products."""
    base = Experiment()
    experiment = Experiment(
        batch_size=size["B"],
        data=dataclasses.replace(base.data, sequence_length=size["S"]),
        model=DecoderConfig(
            vocab_size=size["V"],
            num_layers=size["L"],
            model_dim=size["D"],
            num_heads=size["N"],
            num_kv_heads=size["N"],
            head_dim=size["H"],
            dtype=dtype,
        ),
        moe=MoEConfig(
            num_experts=size["E"],
            expert_dim=size["F"],
            router=Mixtral(k=size["k"]),
            losses=RoutingLosses(load_balance=LoadBalance(coefficient=BALANCE)),
        ),
        optimizer=AdamW(learning_rate=1e-4),
    )
    return build(experiment, IdTokenizer(size["V"]), devices=jax.devices()[:1])


def measure(name: str, repeats: int, peers: bool) -> dict[str, Any]:
    size = SIZES[name]
    program = program_of(size)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, size["V"], (size["B"], size["S"] + 1)).astype(np.int32)
    raw = program.put({"tokens": tokens, "segments": np.ones_like(tokens)})
    holder = {"state": program.init()}

    def ours() -> None:
        holder["state"], result = program.train_step(holder["state"], raw, program.scalars(0))
        jax.block_until_ready((holder["state"], result))

    ours()
    ours()
    limit_calls, rates = limits()
    other = None
    if peers:
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder) / "arrays.npz", tokens=tokens)
            other = TorchPeer(Path(folder), {"kind": "train_step", "balance": BALANCE, **size})
            assert other.arms  # which waits until it has read the folder
    try:
        calls: dict[str, Any] = {"ours": ours, **limit_calls}
        for (arm, passes), call in (other.calls() if other else {}).items():
            if passes == "both":
                calls[arm] = call
        seconds = interleaved(calls, repeats, warm=True)
    finally:
        if other:
            other.close()
    limit = rates({key: float(np.median(seconds.pop(key)[:, 0])) for key in limit_calls})
    counts = program.counts
    work = counts.flops_per_token * size["B"] * size["S"]
    arms = {}
    for arm, times in seconds.items():
        median = float(np.median(times[:, 0]))
        arms[arm] = {
            "ms": 1e3 * median,
            "tokens_per_second": size["B"] * size["S"] / median,
            "gflop_per_second": 1e-9 * work / median,
            "of_matmul_rate": work / median / limit["peak_flops"],
            "ours_over_this": float(np.median(times[:, 0] / seconds["ours"][:, 0])),
        }
    return {
        "name": name,
        **size,
        **limit,
        "repeats": repeats,
        "parameters": counts.total,
        "gflop": 1e-9 * work,
        "arms": arms,
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"\n{result['name']}: {result['parameters'] / 1e6:.1f}M parameters, "
        f"{result['B']} x {result['S']} tokens, {result['gflop']:.0f} GFLOP a step; plain matmul "
        f"{1e-9 * result['peak_flops']:.0f} GFLOP/s"
    )
    print(f"{'':14}{'ms':>8}{'tokens/s':>10}{'GFLOP/s':>9}{'of matmul':>10}{'ours / this':>12}")
    for arm, cell in result["arms"].items():
        print(
            f"{arm:14}{cell['ms']:8.0f}{cell['tokens_per_second']:10.0f}"
            f"{cell['gflop_per_second']:9.0f}{cell['of_matmul_rate']:10.2f}"
            f"{cell['ours_over_this']:12.2f}",
            flush=True,
        )


def main(arguments: Arguments) -> int:
    flags = arguments.flags
    keep_freed_memory()
    results = []
    for name in flags.size:
        results.append(measure(name, flags.repeats, flags.peers))
        show(results[-1])
        jax.clear_caches()
        if flags.json:
            add_results(Path(flags.json), results[-1:], ("name",))
    if flags.plot:
        draw(results, Path(flags.plot))
    return 0
