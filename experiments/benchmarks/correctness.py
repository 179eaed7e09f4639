"""The experts' feed-forward on this machine's device against float64 on its host.

    python -m experiments.benchmarks.correctness [--dtype=bfloat16] [--json=FILE]

For every backend of sorted rows and several loads: the largest error of the output and of each
gradient, over the root mean square of the exact values that are not 0. The tests do it on CPU;
this is for the kernels of an accelerator. Exit code 1 where an error is beyond --tolerance.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmarks.timing import machine
from moe_jax.config.cli import Arguments, door_flags, run_door
from moe_jax.ops.expert_ffn import ExpertWeights, row_backend

R, D, F, E = 2048, 256, 512, 8
LOADS = {
    "even": [R // E] * E,
    "random": np.random.default_rng(0).multinomial(R, [1 / E] * E).tolist(),
    "skewed": [0, R // 2, 3, 0, R // 4, 1, 100, 0],
    "all to one": [0, 0, R, *[0] * (E - 3)],
    "none": [0] * E,
}
TOLERANCE = {"float32": 2e-2, "bfloat16": 6e-2}  # float32 products may run in TF32 or bfloat16

FLAGS = door_flags()
flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "of rows", flag_values=FLAGS)
flags.DEFINE_list(
    "backends", ["auto", "blocks"], "of sorted rows: see moe.matmul", flag_values=FLAGS
)
flags.DEFINE_float("tolerance", None, "largest error that passes", flag_values=FLAGS)
flags.DEFINE_string("json", None, "write the figures to this file", flag_values=FLAGS)


def arrays(dtype: str) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """Matrices, rows, and the cotangent of the output, rounded to dtype."""
    rng = np.random.default_rng(1)
    shapes = ((E, D, F), (E, D, F), (E, F, D))
    scales = (D**-0.5, D**-0.5, F**-0.5)
    matrices = [
        jnp.asarray(rng.standard_normal(shape) * scale, dtype)
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    x, dy = (jnp.asarray(rng.standard_normal((R, D)), dtype) for _ in range(2))
    return matrices, x, dy


def exact(matrices: list[jax.Array], x: jax.Array, dy: jax.Array, load: list[int]) -> list[Any]:
    """y, dx, dw_gate, dw_up, dw_down of silu(x w_gate) * (x w_up) w_down in float64."""
    gate, up, down = (np.asarray(w, np.float64) for w in matrices)
    rows, slope = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    y, dx = np.zeros((R, D)), np.zeros((R, D))
    d_gate, d_up, d_down = np.zeros_like(gate), np.zeros_like(up), np.zeros_like(down)
    start = 0
    for e, size in enumerate(load):
        own = slice(start, start + size)
        start += size
        a, b = rows[own] @ gate[e], rows[own] @ up[e]
        share = 1 / (1 + np.exp(-a))
        h, dh = a * share * b, slope[own] @ down[e].T
        da, db = dh * b * share * (1 + a * (1 - share)), dh * a * share
        y[own], d_down[e] = h @ down[e], h.T @ slope[own]
        dx[own] = da @ gate[e].T + db @ up[e].T
        d_gate[e], d_up[e] = rows[own].T @ da, rows[own].T @ db
    return [y, dx, d_gate, d_up, d_down]


def errors(backend: str, dtype: str, load: list[int]) -> dict[str, float]:
    """Largest error over the root mean square of the exact values that are not 0, by name."""
    matrices, x, dy = arrays(dtype)
    sizes = jnp.asarray(load, jnp.int32)

    def run(matrices: list[jax.Array], x: jax.Array) -> jax.Array:
        gate, up, down = matrices
        weights = ExpertWeights(
            w_gate_EDF=gate, w_up_EDF=up, w_down_EFD=down, activation="swiglu", backend=backend
        )
        return weights.rows(x, sizes)

    def both(matrices: list[jax.Array], x: jax.Array, dy: jax.Array) -> list[jax.Array]:
        y, pull_back = jax.vjp(run, matrices, x)
        d_matrices, dx = pull_back(dy)
        return [y, dx, *d_matrices]

    found = jax.jit(both)(matrices, x, dy)
    names = ("y", "dx", "dw_gate", "dw_up", "dw_down")
    result = {}
    for name, mine, right in zip(names, found, exact(matrices, x, dy, load), strict=True):
        size = np.sqrt(np.sum(right**2) / max(np.count_nonzero(right), 1)) or 1.0
        result[name] = float(np.max(np.abs(np.asarray(mine, np.float64) - right)) / size)
    return result


def main(arguments: Arguments) -> int:
    most = FLAGS.tolerance or TOLERANCE[FLAGS.dtype]
    results, worst = {}, 0.0
    for backend in FLAGS.backends:
        for load, sizes in LOADS.items():
            found = errors(backend, FLAGS.dtype, sizes)
            results[f"{backend}/{load}"] = found
            worst = max([worst, *found.values()])
            told = "  ".join(f"{name} {value:.1e}" for name, value in found.items())
            print(f"{row_backend(backend, None, R, E):10} {load:12} {told}", flush=True)
    if FLAGS.json:
        told = {"machine": machine(), "dtype": FLAGS.dtype, "errors": results}
        Path(FLAGS.json).write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    print(f"largest error {worst:.1e} of at most {most:.1e}")
    return 0 if worst <= most else 1


if __name__ == "__main__":
    sys.exit(run_door(main, usage=__doc__ or "", flags=FLAGS))
