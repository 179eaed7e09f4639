"""The experts' feed-forward on sorted rows against the dense arithmetic that it stands for.

    python -m experiments.benchmarks.grouped_matmul [--case=R,D,F,E ...] [--skew=0.5] [--json=FILE]

Forward, and forward + backward (gradients of rows and weights), SwiGLU, of R rows in E experts:
  dense     all rows through one expert of the same size: the same FLOPs, the limit
  even      every expert has R / E rows: one batched product, what XLA can do without routing
  batched   `ExpertWeights.rows` with the backend "batched": a batched product and a remainder
  blocks    with the backend "blocks": one fused loop over blocks of rows
  separate  three calls of `grouped_matmul` with the backend "blocks"
  ragged    the same with `jax.lax.ragged_dot` (--ragged: it is slow)
In one process, interleaved. Printed are median milliseconds and the speed as a share of dense:
the median over the repeats of (dense / this), both from the same repeat, by the clock and by the
time of all processors (which other programs on the machine disturb less).
"""

from __future__ import annotations

import sys

from absl import flags

from moe_jax.cli import body, command_flags, run_command

# The quickstart's sizes, then those of the comparison with other frameworks.
CASES = ["8192,128,256,8", "8192,512,1024,8", "8192,512,1024,64"]

FLAGS = command_flags()
flags.DEFINE_multi_string(
    "case", CASES, "rows, model width, hidden width, experts", flag_values=FLAGS
)
text = "loads are multinomial with probabilities ~ exp(skew * normal)"
flags.DEFINE_float("skew", 0.0, text, flag_values=FLAGS)
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "of rows and weights", flag_values=FLAGS
)
flags.DEFINE_integer("repeats", 15, "timed runs of each arm", flag_values=FLAGS)
flags.DEFINE_bool("ragged", False, "also jax.lax.ragged_dot", flag_values=FLAGS)
flags.DEFINE_string("json", None, "write the figures to this file", flag_values=FLAGS)

main = body("experiments.benchmarks.products")

if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__ or "", flags=FLAGS))
