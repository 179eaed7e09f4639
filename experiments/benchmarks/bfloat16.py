"""A bfloat16 run beside a float32 run: losses over paired seeds, gradients by parameter.

    python -m experiments.benchmarks.bfloat16 [--config=FILE] [--config.steps=600] [--json=FILE]

Each seed trains two runs on the same batches from the same parameters, one for each model.dtype.
Printed are the loss of training (mean of the last tenth of the steps) and of the evaluation split,
in nats a target, and their differences over seeds with twice the standard error. Gradients are of
the float32 run's own parameters and batches, at the first step, in the middle and at the end: the
cosine between both types for each array of parameters, all its layers together.
"""

from __future__ import annotations

import sys

from absl import flags

from moe_jax.cli import body, command_flags, run_command

FLAGS = command_flags()
flags.DEFINE_string("config", "configs/quickstart.py", "the config", flag_values=FLAGS)
flags.DEFINE_integer("seeds", 3, "pairs of runs", flag_values=FLAGS)
flags.DEFINE_string("json", None, "write the figures to this file", flag_values=FLAGS)

main = body("experiments.benchmarks.pairs")

if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__ or "", flags=FLAGS))
