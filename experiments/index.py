"""Writes docs/results.md, the last result into each card's README, and what holds into the
project's, from the committed tables.

python -m experiments.index [--check]     (--check: only say whether they are up to date)
"""

from __future__ import annotations

import sys

from absl import flags

from moe_jax.cli import body, command_flags, run_command

FLAGS = command_flags()
flags.DEFINE_boolean("check", False, "write nothing; exit code 1 if stale", flag_values=FLAGS)

main = body("experiments.pages")

if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__ or "", flags=FLAGS))
