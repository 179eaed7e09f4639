"""What the compiled training step sends and holds, as devices grow: compiled against the formula.

    python -m experiments.benchmarks.collective_bytes [--devices=8,64,256] [--json=FILE]

Compiles the training step for that many virtual CPU devices and runs nothing. Every device has the
same number of tokens whatever their number (weak scaling); 64 experts are spread over as many
devices as there are, up to 64, and the rest is `data`. Bytes are those that one device sends over
`expert` in one step, forward and backward, in exchanges of tokens, per sparse layer. `ragged` is
emulated on CPU and so left out.
"""

from __future__ import annotations

import sys

from absl import flags

from moe_jax.cli import body, command_flags, run_command

FLAGS = command_flags()
flags.DEFINE_list("devices", ["8", "64", "256"], "numbers of devices", flag_values=FLAGS)
flags.DEFINE_string("json", None, "write the figures to this file", flag_values=FLAGS)

main = body("experiments.benchmarks.exchanges")

if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__ or "", flags=FLAGS))
