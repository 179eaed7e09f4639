"""What experiments.benchmarks.grouped_matmul measures."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import compiled, interleaved, machine
from moe_jax.cli import Arguments
from moe_jax.ops.expert_ffn import ExpertWeights
from moe_jax.ops.grouped_matmul import grouped_matmul


def main(arguments: Arguments) -> int:
    flags = arguments.flags
    results = []
    for case in flags.case:
        R, D, F, E = map(int, case.split(","))
        result = measure(R, D, F, E, flags.skew, flags.dtype, flags.repeats, flags.ragged)
        results.append(result)
        show(result)
    if flags.json:
        text = json.dumps({"machine": machine(), "results": results}, indent=2)
        Path(flags.json).write_text(text + "\n", "utf-8")
    return 0


def loads(R: int, E: int, skew: float) -> np.ndarray:
    """Rows of each expert: multinomial, the probabilities log-normal."""
    rng = np.random.default_rng(0)
    share = np.exp(skew * rng.standard_normal(E))
    return rng.multinomial(R, share / share.sum()).astype(np.int32)


def arms(sizes_E: np.ndarray, ragged: bool) -> dict[str, Callable[[Any, jax.Array], jax.Array]]:
    """Each a function of ((w_gate, w_up, w_down), rows)."""
    sizes = jnp.asarray(sizes_E)

    def experts(weights: Any, **options: Any) -> ExpertWeights:
        gate, up, down = weights
        return ExpertWeights(
            w_gate_EDF=gate, w_up_EDF=up, w_down_EFD=down, activation="swiglu", **options
        )

    def dense(weights: Any, x: jax.Array) -> jax.Array:
        gate, up, down = (w[0] for w in weights)
        return (jax.nn.silu(x @ gate) * (x @ up)) @ down

    def even(weights: Any, x: jax.Array) -> jax.Array:
        return experts(weights).slots(x.reshape(len(sizes_E), -1, x.shape[1])).reshape(x.shape)

    def batched(weights: Any, x: jax.Array) -> jax.Array:
        return experts(weights, backend="batched").rows(x, sizes)

    def blocks(weights: Any, x: jax.Array) -> jax.Array:
        return experts(weights, backend="blocks").rows(x, sizes)

    def separate(weights: Any, x: jax.Array) -> jax.Array:
        gate, up, down = weights
        times = functools.partial(grouped_matmul, sizes_E=sizes, backend="blocks")
        return times(jax.nn.silu(times(x, gate)) * times(x, up), down)

    def ragged_dot(weights: Any, x: jax.Array) -> jax.Array:
        return experts(weights, backend="ragged_dot").rows(x, sizes)

    found = {
        "dense": dense,
        "even": even,
        "batched": batched,
        "blocks": blocks,
        "separate": separate,
    }
    return found | ({"ragged": ragged_dot} if ragged else {})


def measure(
    R: int, D: int, F: int, E: int, skew: float, dtype: str, repeats: int, ragged: bool
) -> dict[str, Any]:
    """Milliseconds of every arm, forward and forward + backward, and shares of dense speed."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(E, D, F), (E, D, F), (E, F, D)]
    weights = [jax.random.normal(k, s, dtype) * 0.05 for k, s in zip(keys, shapes, strict=False)]
    x, dy = (jax.random.normal(k, (R, D), dtype) for k in keys[3:])
    sizes = loads(R, E, skew)
    run: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, arm in arms(sizes, ragged).items():
        own = [w[:1] for w in weights] if name == "dense" else weights
        run[name, "forward"] = compiled(arm, own, x).call
        run[name, "both"] = compiled(
            jax.grad(lambda w, x, dy, arm=arm: jnp.vdot(arm(w, x), dy), (0, 1)), own, x, dy
        ).call
    seconds = interleaved(run, repeats)
    figures = {}
    for (name, passes), times in seconds.items():
        clock, processor = np.median(seconds["dense", passes] / times, axis=0).tolist()
        figures[f"{name}/{passes}"] = {
            "ms": 1e3 * float(np.median(times[:, 0])),
            "of_dense": clock,
            "of_dense_processor_time": processor,
        }
    case = dict(R=R, D=D, F=F, E=E, skew=skew, dtype=dtype, repeats=repeats)
    return {**case, "smallest": int(sizes.min()), "largest": int(sizes.max()), "arms": figures}


def show(result: dict[str, Any]) -> None:
    """A table of one case."""
    R, D, F, E = (result[name] for name in "RDFE")
    print(
        f"\nR={R} D={D} F={F} E={E} {result['dtype']}, "
        f"{result['smallest']} to {result['largest']} rows an expert"
    )
    shares = f"{'clock':>8}{'CPU':>6}"
    print(f"{'':10}{'forward':>15}{shares}{'+ backward':>15}{shares}")
    arms = result["arms"]
    for name in dict.fromkeys(key.split("/")[0] for key in arms):
        cells = (arms[f"{name}/{passes}"] for passes in ("forward", "both"))
        columns = (
            f"{c['ms']:12.1f} ms{c['of_dense']:8.2f}{c['of_dense_processor_time']:6.2f}"
            for c in cells
        )
        print(f"{name:10}" + "".join(columns))
    rate = 18e-9 * R * D * F / (1e-3 * arms["dense/both"]["ms"])
    print(f"dense: {rate:.0f} GFLOP/s forward + backward", flush=True)
