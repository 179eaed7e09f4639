"""Command: does parallelism change the numbers of a config?"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from moe_jax.cli import Arguments, command_flags, importing, run_command
from moe_jax.config import xla_flags
from moe_jax.config.errors import UserError
from moe_jax.config.paths import file_to_write, write_whole

if TYPE_CHECKING:
    import jax

USAGE = """
usage: python -m moe_jax.check --config=FILE.py[:arg] [--config.a.b=VALUE ...]

Makes the config small, runs a few optimizer steps on meshes, layouts, transports, micro-batches and
recomputation of all kinds, and compares each with one device. Exit code 0: all are equal; 1: one
differs; 2: a mistake in the command.
  python -m moe_jax.check --config=configs/quickstart.py
  python -m moe_jax.check --config=configs/quickstart.py --config.moe.router.kind=my_module:MyRouter
"""
FLAGS = command_flags("config")
flags.DEFINE_integer("steps", 3, "optimizer steps of each variant", flag_values=FLAGS)
flags.DEFINE_integer("devices", 8, "devices to spread over, at least 2", flag_values=FLAGS)
flags.DEFINE_string("only", "", "run the variants with this in their name", flag_values=FLAGS)
flags.DEFINE_float("tolerance", 1e-5, "relative, of losses; see docs/check.md", flag_values=FLAGS)
flags.DEFINE_list("keep", [], "paths of the config that do not shrink", flag_values=FLAGS)
flags.DEFINE_string("json", None, "also write the report to this file", flag_values=FLAGS)


def main(arguments: Arguments) -> int:
    problems = []
    if FLAGS.steps < 1:
        problems.append("--steps must be at least 1")
    if FLAGS.devices < 2:
        problems.append("--devices must be at least 2")
    if not FLAGS.tolerance > 0:
        problems.append("--tolerance must be above 0")
    if problems:
        raise UserError("\n  ".join(problems))
    # Imported here: --help and a misspelt flag need no JAX.
    ask_for_devices(FLAGS.devices)
    with importing():
        from moe_jax.config.overrides import load_config
        from moe_jax.training.experiment import Experiment

    # Before JAX starts, which takes seconds: a mistake in the config is reported at once.
    out = file_to_write(FLAGS.json, "--json") if FLAGS.json else None
    experiment = load_config(FLAGS.config, arguments.overrides, Experiment)
    from moe_jax.checking import invariance, table

    devices = start_devices(FLAGS.devices)
    plan = invariance.plan(
        experiment,
        devices,
        steps=FLAGS.steps,
        tolerance=FLAGS.tolerance,
        only=FLAGS.only,
        keep=FLAGS.keep,
    )

    def show(outcome: invariance.VariantOutcome) -> None:
        print(table.row(outcome, plan), flush=True)
        if FLAGS.debug:
            sys.stderr.write(outcome.traceback)

    print(table.head(plan), flush=True)
    report = invariance.check(plan, show)
    print(table.foot(report, plan))
    if out is not None:
        write_whole(out, json.dumps(table.to_json(report, plan), indent=2))
    return 0 if report.equal else 1


def ask_for_devices(count: int) -> None:
    """JAX is to make `count` parts of the CPU when it starts. To be called before it does."""
    # Many device threads on few cores may wait long for each other.
    xla_flags.add("--xla_cpu_collective_call_terminate_timeout_seconds=600")
    import jax

    with contextlib.suppress(RuntimeError):  # JAX runs already; what it has is seen below
        jax.config.update("jax_num_cpu_devices", count)


def start_devices(count: int) -> Sequence[jax.Device]:
    """`count` devices: real ones where there are as many, else as many parts of the CPU. Raises
    UserError where JAX has started with fewer."""
    import jax

    try:
        real = jax.devices()
        if real[0].platform != "cpu" and len(real) >= count:
            return real[:count]
        parts = jax.devices("cpu")
    except RuntimeError as error:
        raise UserError(f"--devices={count}: JAX has no such devices: {error}") from error
    if real[0].platform != "cpu":
        jax.config.update("jax_default_device", parts[0])
    if len(parts) < count:
        raise UserError(f"--devices={count}: JAX has started with {len(parts)} CPU devices")
    return parts[:count]


if __name__ == "__main__":
    sys.exit(run_command(main, usage=USAGE, flags=FLAGS))
