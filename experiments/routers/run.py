"""Trains every router for the same steps and writes the table of docs/routers.md.

    python -m experiments.routers.run [--only=NAME,...] [--steps=200] [--seeds=0] [--table_only]

Arms that experiments/routers/results.json has already are not trained again (--again does). About
two minutes an arm and seed on 2 CPU cores.
"""

from __future__ import annotations

import sys

from absl import flags

from moe_jax.cli import body, command_flags, run_command

FLAGS = command_flags()
flags.DEFINE_list("only", None, "arms (default: all)", flag_values=FLAGS)
flags.DEFINE_integer("steps", 200, "training steps", flag_values=FLAGS)
flags.DEFINE_list("seeds", ["0"], "seeds, of parameters, data order and routing", flag_values=FLAGS)
flags.DEFINE_boolean("again", False, "train arms that have results too", flag_values=FLAGS)
flags.DEFINE_boolean("table_only", False, "only write the table anew", flag_values=FLAGS)

main = body("experiments.routers.table")

if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__ or "", flags=FLAGS))
