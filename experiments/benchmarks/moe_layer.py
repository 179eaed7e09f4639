"""A whole sparse layer (route, permute, experts, combine) against what it could cost.

    python -m experiments.benchmarks.moe_layer [--case=T,D,F,E,k ...] [--load=random] [--json=FILE]
                                                [--plot=FILE]

Forward, and forward + backward (gradients of the input and of all parameters), SwiGLU, Mixtral's
router, T tokens in rows of 512:
  dense          one feed-forward of width k F: the same FLOPs without routing
  even           token t takes the experts t k, ..., t k + k - 1 modulo E: every expert has the same
                 number of rows, one batched product, with its gather and its combine
  rows           our dropless layout with the backend of this platform
  blocks, batched  the same with these backends: a loop over experts, a batched product of all
  slots_scatter  our slots at a capacity factor of 1.25 in groups of 512 tokens: drops
  slots_einsum   the same slots filled by a one-hot product, as in GShard
  ragged_dot     our dropless layout with `jax.lax.ragged_dot` (--slow)
  torch dense, hf eager, hf grouped_mm   PyTorch's dense feed-forward and Hugging Face's Mixtral
                 block on the same arrays in a second process (where the extra `hf` is installed)

All runs of a case are interleaved. Shares are medians over repeats of (dense / this), both from the
same repeat, by the clock and by the time of all processors. `bound` is the larger of FLOPs / peak
and bytes / bandwidth, both rates measured in the same run; bytes: the matrices read twice and their
gradients written once, the rows before the activation written and read, input, output and their
gradients once.
"""

from __future__ import annotations

import sys

from absl import flags

from experiments.benchmarks.peers import available
from moe_jax.cli import body, command_flags, run_command

# Mixtral's proportions, then more and more experts, then the quickstart's layer.
CASES = [*(f"4096,512,1024,{E},2" for E in (8, 16, 32, 64, 128, 256)), "4096,128,256,8,2"]
# "random", and those of experiments/benchmarks/workloads.py, which needs JAX.
LOADS = (
    *("random", "balanced", "uniform", "hot_expert", "hot_device", "spread_hot", "empty_device"),
    *("rotating", "burst", "all_to_one"),
)

FLAGS = command_flags()
flags.DEFINE_multi_string("case", CASES, "tokens, D, F, experts, k", flag_values=FLAGS)
flags.DEFINE_enum("load", "random", LOADS, "how the tokens choose", flag_values=FLAGS)
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "of tokens and experts", flag_values=FLAGS
)
flags.DEFINE_integer("repeats", 11, "timed runs of each arm", flag_values=FLAGS)
flags.DEFINE_bool("slow", False, "also ragged_dot", flag_values=FLAGS)
flags.DEFINE_bool("peers", available(), "also Hugging Face in PyTorch", flag_values=FLAGS)
flags.DEFINE_string("json", None, "add the figures to this file", flag_values=FLAGS)
flags.DEFINE_string("plot", None, "a picture of this run's figures", flag_values=FLAGS)

main = body("experiments.benchmarks.layers")

if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__ or "", flags=FLAGS))
