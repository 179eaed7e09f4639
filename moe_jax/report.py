"""Command: writes one self-contained HTML report on one run or several."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

from absl import flags

from moe_jax.cli import Arguments, command_flags, importing, run_command, trust_flag
from moe_jax.config.errors import UserError
from moe_jax.config.paths import expanded

if TYPE_CHECKING:
    from moe_jax.analysis.report.routing import RoutingView

USAGE = """
usage: python -m moe_jax.report --workdir=DIR[,DIR2,...] [--workdir=DIR3 ...] [--out=FILE.html]

Writes a page with the curves, the load of the experts, the speed and the config of a run, finished
or not; with several runs, over each other. It loads nothing from anywhere. --routing also loads the
run's checkpoints and shows text by expert, what experts prefer, and how early routes settled.
  python -m moe_jax.report --workdir=runs/quickstart --routing
  python -m moe_jax.report --workdir=runs/quickstart,runs/dense --out=both.html
"""
FLAGS = command_flags()
trust_flag(FLAGS)
flags.DEFINE_multi_string(
    "workdir",
    None,
    "the folder of a run; with commas, or again, for more runs",
    flag_values=FLAGS,
    required=True,
)
flags.DEFINE_string(
    "out",
    None,
    "where to write (default: report.html in the workdir; of several, in the folder around them)",
    flag_values=FLAGS,
)
flags.DEFINE_boolean(
    "routing", False, "what the router does with the evaluation's text", flag_values=FLAGS
)
flags.DEFINE_integer("batches", 8, "of the evaluation, for --routing", 1, flag_values=FLAGS)
MAX_CHECKPOINTS = 12


def main(arguments: Arguments) -> int:
    with importing():
        from moe_jax.analysis.report import write_report
        from moe_jax.config.paths import size_of

    workdirs = [folder for given in FLAGS.workdir for folder in _folders(given)]
    if "" in workdirs:
        raise UserError("--workdir is empty, or nothing stands beside a comma")
    if FLAGS.routing and len(workdirs) > 1:
        raise UserError("--routing is of one run: give one --workdir")
    routing = routing_view(workdirs[0], FLAGS.batches) if FLAGS.routing else None
    file = write_report(workdirs, FLAGS.out, routing)
    print(f"wrote {file} ({size_of(file) / 1e3:,.0f} kB)")
    return 0


def routing_view(workdir: str, batches: int) -> RoutingView:
    """Traces of the run's checkpoints (some of them, where there are many) on evaluation batches.
    UserError for a dense model."""
    from moe_jax.analysis.report.routing import RoutingView
    from moe_jax.notebook import load

    run = load(workdir)
    steps = run.checkpoint_steps()
    if len(steps) > MAX_CHECKPOINTS:
        steps = [
            steps[n * (len(steps) - 1) // (MAX_CHECKPOINTS - 1)] for n in range(MAX_CHECKPOINTS)
        ]
    traces = [run.at(step).trace(batches) for step in steps if step != run.step]
    traces.append(run.trace(batches))
    if run.config.io.image is not None:
        return RoutingView(traces, str, functools.cache(run.picture))
    if run.config.io.table is not None:
        return RoutingView(traces, str, rows_are_text=False)
    return RoutingView(traces, functools.cache(run.text_of_token), samples=run.samples())


def _folders(given: str) -> list[str]:
    """The folders of one --workdir; a folder with a comma in its name stays whole."""
    return [given] if expanded(given).is_dir() else given.split(",")


if __name__ == "__main__":
    sys.exit(run_command(main, usage=USAGE, flags=FLAGS))
