"""Grouped products, experts and whole layers on this machine's device against float64 on its host.

    python -m experiments.benchmarks.correctness [--tiny] [--json=FILE] [--write_expected]

Outputs and every gradient, in bfloat16 and float32, under several loads:
  product/BACKEND   one grouped product
  experts/BACKEND   the experts' feed-forward on sorted rows
  layer/LAYOUT      a whole layer with its router, dropless and with a capacity that drops
An error is |found - exact| / |exact| in the Euclidean norm. The exact figures are numpy's, computed
beside the device from the same rounded inputs: so each value is compared, at any size, and nothing
large is carried. Their norms are carried (expected.json, written where the tests run): another
numpy that draws or multiplies differently is noticed. Exit code 1 for an error beyond TOLERANCE.
"""

from __future__ import annotations

import sys

from absl import flags

from moe_jax.cli import body, command_flags, run_command

FLAGS = command_flags()
flags.DEFINE_bool("tiny", False, "small arrays", flag_values=FLAGS)
flags.DEFINE_string("json", None, "write the figures to this file", flag_values=FLAGS)
flags.DEFINE_bool("write_expected", False, "write expected.json anew", flag_values=FLAGS)

main = body("experiments.benchmarks.exact")

if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__ or "", flags=FLAGS))
