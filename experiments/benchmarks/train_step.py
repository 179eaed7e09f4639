"""A whole training step against Hugging Face's, and against the plain matmul rate of the machine.

    python -m experiments.benchmarks.train_step [--size=3.5m ...] [--repeats=9] [--json=FILE]
                                                 [--plot=FILE]

Float32, AdamW with clipping, dropless Mixtral with its balance loss, the same shapes and batch:
  3.5m       D=128, F=256, 4 layers, 8 experts, k=2, bytes, 16 rows of 256 (the quickstart's model)
  90m        D=512, F=1024, 6 layers, 8 experts, k=2, vocabulary 8192, 4 rows of 512
  90m-e64    the same with 64 experts (about 620M parameters, as many active)
Arms: `ours` (the training step with all its statistics), `hf eager` and `hf grouped_mm`
(MixtralForCausalLM with its `experts_implementation`, torch.optim.AdamW) in a second process, all
interleaved. FLOPs: 6 for each active matmul parameter and token, 12 S N H a token and layer for the
attention, which is counted whole although half of it is masked.
"""

from __future__ import annotations

import sys

from absl import flags

from experiments.benchmarks.peers import available
from moe_jax.cli import body, command_flags, run_command

SIZES: dict[str, dict[str, int]] = {
    "3.5m": dict(D=128, F=256, L=4, E=8, k=2, V=264, N=4, H=32, B=16, S=256),
    "90m": dict(D=512, F=1024, L=6, E=8, k=2, V=8192, N=8, H=64, B=4, S=512),
    "90m-e64": dict(D=512, F=1024, L=6, E=64, k=2, V=8192, N=8, H=64, B=4, S=512),
}

FLAGS = command_flags()
flags.DEFINE_multi_enum("size", list(SIZES), list(SIZES), "models", flag_values=FLAGS)
flags.DEFINE_integer("repeats", 9, "timed steps of each arm", flag_values=FLAGS)
flags.DEFINE_bool("peers", available(), "also Hugging Face in PyTorch", flag_values=FLAGS)
flags.DEFINE_string("json", None, "add the figures to this file", flag_values=FLAGS)
flags.DEFINE_string("plot", None, "a picture of this run's figures", flag_values=FLAGS)

main = body("experiments.benchmarks.steps")

if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__ or "", flags=FLAGS))
