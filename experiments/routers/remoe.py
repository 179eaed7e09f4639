"""ReMoE's controller: whether the adaptive L1 coefficient (2412.14711) brings every layer to its
target sparsity within 150 steps, from first coefficients over many decades.

    python -m experiments.routers.remoe [--seed=0] [--table_only]

Writes experiments/routers/remoe.json (runs that it has are not repeated) and remoe.md.
"""

from __future__ import annotations

import sys

from absl import flags

from moe_jax.cli import body, command_flags, run_command

FLAGS = command_flags()
flags.DEFINE_integer("seed", 0, "seed", flag_values=FLAGS)
flags.DEFINE_boolean("table_only", False, "only write the text anew", flag_values=FLAGS)

main = body("experiments.routers.controller")

if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__ or "", flags=FLAGS))
