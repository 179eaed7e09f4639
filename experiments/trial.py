"""One run of a card: trains, or goes on, and then measures what its card asks for.

python -m experiments.trial --card=NAME --workdir=DIR    (DIR holds the run's config.json)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from absl import flags

from moe_jax.cli import Arguments, command_flags, run_command

FLAGS = command_flags("workdir")
flags.DEFINE_string("card", None, "a folder of experiments/", required=True, flag_values=FLAGS)


def main(arguments: Arguments) -> int:
    # Imported here: --help and a misspelt flag need no JAX.
    from experiments.card import load_card
    from moe_jax.config.kinds import trusted
    from moe_jax.config.paths import write_whole
    from moe_jax.notebook import config_of, load
    from moe_jax.parallel.compiler import keep_compiled_programs
    from moe_jax.parallel.host_memory import keep_freed_memory
    from moe_jax.sweeps.table import MEASURES
    from moe_jax.training.loop import train

    keep_freed_memory()
    keep_compiled_programs()
    card = load_card(FLAGS.card).card
    with trusted():  # the config is the card's, written by experiments.run
        outcome = train(config_of(FLAGS.workdir), FLAGS.workdir)
        if outcome.complete and card.measure is not None:
            measures = card.measure(load(FLAGS.workdir))
            write_whole(Path(FLAGS.workdir) / MEASURES, json.dumps(measures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__ or "", flags=FLAGS))
