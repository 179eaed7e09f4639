"""Places in the experts' queues: by a table of rows and experts, or by a sort.

    python -m experiments.benchmarks.queues

G groups of T tokens with k experts each, drawn evenly: the place of each of the R = T k rows in its
expert's queue, vmapped over the groups. Milliseconds are medians of interleaved repeats, MB the
temporary arrays of the compiled program.
  table   cumulative sums of a one-hot table (R, E)
  stable  a stable argsort of the experts, then a search
  keyed   `routing.plan.queues`: one sort of expert * R + row
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import compiled, interleaved
from moe_jax.routing.plan import one_hot, queues

CASES = [(16, 256, 2, E) for E in (8, 64, 512)] + [(1, 8192, 8, E) for E in (8, 64, 512)]
REPEATS = 15


def by_table(expert_R: jax.Array, E: int) -> tuple[jax.Array, jax.Array]:
    wanted_RE = one_hot(expert_R, E).astype(jnp.int32)
    before_RE = jnp.cumsum(wanted_RE, axis=0) - wanted_RE
    return jnp.sum(before_RE * wanted_RE, axis=1), jnp.sum(wanted_RE, axis=0)


def by_stable_sort(expert_R: jax.Array, E: int) -> tuple[jax.Array, jax.Array]:
    order_R = jnp.argsort(expert_R, stable=True)
    sorted_R = expert_R[order_R]
    edge_E = jnp.searchsorted(sorted_R, jnp.arange(E + 1))
    slot_R = jnp.arange(expert_R.shape[0]) - edge_E[sorted_R]
    return jnp.zeros_like(slot_R).at[order_R].set(slot_R, unique_indices=True), jnp.diff(edge_E)


ARMS = {"table": by_table, "stable": by_stable_sort, "keyed": queues}


def main() -> None:
    print(f"| G, T, k | experts | {' | '.join(f'{name}, ms (MB)' for name in ARMS)} |")
    print("| --- | ---: |" + " ---: |" * len(ARMS))
    for G, T, k, E in CASES:
        drawn = np.random.default_rng(0).integers(0, E, (G, T * k)).astype(np.int32)
        expert_GR = jnp.asarray(drawn)
        programs = {
            name: compiled(jax.vmap(functools.partial(arm, E=E)), expert_GR)
            for name, arm in ARMS.items()
        }
        found = [jax.device_get(program.start()) for program in programs.values()]
        assert all(jax.tree.all(jax.tree.map(np.array_equal, one, found[0])) for one in found)
        seconds = interleaved({name: p.call for name, p in programs.items()}, REPEATS)
        cells = [
            f"{1000 * np.median(seconds[name][:, 0]):.2f} ({p.temporary_bytes / 1e6:.1f})"
            for name, p in programs.items()
        ]
        print(f"| {G}, {T}, {k} | {E} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
