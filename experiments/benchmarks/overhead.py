"""What the loop and the metrics cost beside the model.

    python -m experiments.benchmarks.overhead [--config=configs/quickstart.py] [--json=FILE]

Two figures, each from one process, medians of interleaved repeats:
  host     ms per step of the loop (data, scalars, metrics, progress, writers) with the training
           step replaced by a no-op that returns a canned result;
  metrics  the training step with all metrics against the same step that returns only the loss.
"""

from __future__ import annotations

import sys

from absl import flags

from moe_jax.cli import body, command_flags, run_command

FLAGS = command_flags()
flags.DEFINE_string("config", "configs/quickstart.py", "the config", flag_values=FLAGS)
flags.DEFINE_string("json", None, "write the figures to this file", flag_values=FLAGS)
flags.DEFINE_integer("steps", 500, "loop steps with the no-op", flag_values=FLAGS)
flags.DEFINE_integer("repeats", 15, "timed training steps of each arm", flag_values=FLAGS)

main = body("experiments.benchmarks.loop_costs")

if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__ or "", flags=FLAGS))
