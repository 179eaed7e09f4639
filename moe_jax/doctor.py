"""Command: is this machine ready?"""

from __future__ import annotations

import sys

from absl import flags

from moe_jax.cli import Arguments, command_flags, importing, run_command

USAGE = """
usage: python -m moe_jax.doctor [--train=false]

Tells what is installed here, which devices JAX sees, where compiled programs are kept, how much
memory and disk are free; trains a tiny sparse model for a moment, saves it and reads it again; and
says what would be a problem. Exit code 0: all is well; 1: something would not work.
"""
FLAGS = command_flags()
flags.DEFINE_boolean("train", True, "also train a tiny model", flag_values=FLAGS)


def main(arguments: Arguments) -> int:
    # Imported here: --help and a misspelt flag need no JAX.
    with importing():
        from moe_jax.checking.doctor import examine

    findings = examine(train=FLAGS.train, say=lambda line: print(line, flush=True))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(run_command(main, usage=USAGE, flags=FLAGS))
