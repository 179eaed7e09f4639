"""Command: trains a model, or goes on with the run that a folder holds."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from absl import flags

from moe_jax.cli import Arguments, command_flags, importing, process_flags, run_command

if TYPE_CHECKING:
    from moe_jax.notebook import LoadedRun

USAGE = """
usage: python -m moe_jax.train --config=FILE.py[:arg] --workdir=DIR [--config.a.b=VALUE ...]

Trains the model of the config, or resumes the run that DIR holds. Ctrl-C and SIGTERM save and
stop; the same command goes on.
  python -m moe_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
"""
FLAGS = command_flags("config", "workdir")
flags.DEFINE_boolean(
    "allow_changes", False, "resume although config or data differ", flag_values=FLAGS
)
flags.DEFINE_string(
    "warm_start", None, "workdir of a run whose parameters to start from", flag_values=FLAGS
)
text = "what the router's columns of copied experts are, where a warm start has more of them"
flags.DEFINE_enum("grow", "noise", ["noise", "new", "copy"], text, flag_values=FLAGS)
text = "exit code of a run that a signal has stopped before its end, for schedulers (75: try again)"
flags.DEFINE_integer("stopped_exit_code", 0, text, 0, 255, flag_values=FLAGS)
process_flags(FLAGS)


def main(arguments: Arguments) -> int:
    # Imported here: --help and a misspelt flag need no JAX.
    with importing():
        from moe_jax.config.overrides import load_config
        from moe_jax.parallel.compiler import keep_compiled_programs
        from moe_jax.parallel.host_memory import keep_freed_memory
        from moe_jax.parallel.hosts import joined
        from moe_jax.training.experiment import Experiment

    keep_freed_memory()
    keep_compiled_programs()
    with joined(
        FLAGS.coordinator,
        FLAGS.processes,
        FLAGS.process,
        timeout=FLAGS.join_timeout,
        debug=FLAGS.debug,
    ):
        experiment = load_config(FLAGS.config, arguments.overrides, Experiment)
        # Imported after the config is read: a mistake in it is reported without this wait.
        from moe_jax.training.loop import train

        outcome = train(
            experiment,
            FLAGS.workdir,
            allow_changes=FLAGS.allow_changes,
            warm_start_from=FLAGS.warm_start,
            grow=FLAGS.grow,
        )
    return 0 if outcome.complete else FLAGS.stopped_exit_code


class _Command(ModuleType):
    """`moe_jax.train(config, workdir)` from Python, beside the command of the same name."""

    def __call__(self, config: Any, workdir: Any, **options: Any) -> LoadedRun:
        """`moe_jax.notebook.train`, which says what there is."""
        from moe_jax.notebook import train

        return train(config, workdir, **options)


sys.modules[__name__].__class__ = _Command


if __name__ == "__main__":
    sys.exit(run_command(main, usage=USAGE, flags=FLAGS))
