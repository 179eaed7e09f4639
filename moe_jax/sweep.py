"""Command: many runs of one config, each with other values."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from moe_jax.cli import Arguments, command_flags, importing, run_command, trust_flag
from moe_jax.config.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from moe_jax.sweeps.folder import SweepFolder
    from moe_jax.sweeps.points import SweepPoint

USAGE = """
usage: python -m moe_jax.sweep --config=FILE.py[:arg] --out=DIR [--sweep=...] [--config.a.b=V]

Checks every point of the sweep, then runs them, each in its own folder; the same command goes on
where it was stopped or killed. Without --sweep: the config file's own get_sweep(h).
  python -m moe_jax.sweep --config=configs/quickstart.py --out=runs/k --workers=2 \\
    --sweep="moe.router.k=1,2,4; seed=0..2"
Several paths that go together: "(moe.num_experts, moe.expert_dim) = (8, 256), (16, 128)".
"""
FLAGS = command_flags("config")
trust_flag(FLAGS)
flags.DEFINE_string("out", None, "the folder of the sweep", flag_values=FLAGS, required=True)
flags.DEFINE_string(
    "sweep", None, '"PATH=VALUE,VALUE; PATH=A..B", or FILE.py with get_sweep(h)', flag_values=FLAGS
)
flags.DEFINE_integer("workers", 1, "runs at a time, on this machine", 1, flag_values=FLAGS)
flags.DEFINE_enum(
    "match",
    None,
    ["flops", "active", "parameters"],
    "give every point what the config has of it, by another width of the experts",
    flag_values=FLAGS,
)
flags.DEFINE_string("match_width", None, "the width that is solved for (a path)", flag_values=FLAGS)
flags.DEFINE_string("metric", None, "what arms are compared by", flag_values=FLAGS)
flags.DEFINE_string(
    "baseline",
    None,
    "the arm that others are compared with (default: the first)",
    flag_values=FLAGS,
)
flags.DEFINE_boolean("dry_run", False, "show the plan and write nothing", flag_values=FLAGS)
flags.DEFINE_string(
    "commands",
    None,
    "write each point's command to this file, for a cluster, and start none",
    flag_values=FLAGS,
)


def main(arguments: Arguments) -> int:
    # Imported here: --help and a misspelt flag need no JAX.
    with importing():
        from moe_jax.config.overrides import load_config
        from moe_jax.sweeps.definition import read_sweep
        from moe_jax.sweeps.folder import SweepFolder
        from moe_jax.sweeps.matching import Matching
        from moe_jax.sweeps.points import question_of, resolve
        from moe_jax.sweeps.table import require_metric
        from moe_jax.sweeps.view import plan_table, run_shown, wide_console
        from moe_jax.training.experiment import Experiment

    if FLAGS.match_width and not FLAGS.match:
        raise UserError("--match_width needs --match")
    matching = Matching(FLAGS.match, FLAGS.match_width)
    sweep = read_sweep(FLAGS.sweep, FLAGS.config)
    points = resolve(FLAGS.config, arguments.overrides, sweep, matching)
    if FLAGS.metric:
        require_metric(FLAGS.metric, [point.experiment for point in points])
    folder = SweepFolder(FLAGS.out)
    _require_arm(FLAGS.baseline, [*folder.known(), *points])
    console = wide_console()
    console.print(plan_table(points))
    base = load_config(FLAGS.config, dict(arguments.overrides), Experiment)
    for note in matching.notes(base, {point.arm: point.experiment for point in points}):
        console.print(note, soft_wrap=True)
    if FLAGS.dry_run:
        return 0
    asked = question_of(base, kind="sweep", match=FLAGS.match, match_width=FLAGS.match_width)
    everyone = folder.prepare(points, asked)
    if FLAGS.commands:
        _write_commands([folder.command(point) for point in points])
        console.print(f"wrote {len(points)} commands to {FLAGS.commands}", soft_wrap=True)
        return 0
    all_done = run_shown([folder.job(point) for point in points], FLAGS.workers, console)
    if len(everyone) > len(points):
        more = len(everyone) - len(points)
        console.print(f"the tables hold {more} points of earlier sweeps in this folder too")
    _print_results(folder, everyone, console)
    return 0 if all_done else 1


def _write_commands(commands: Sequence[Sequence[str]]) -> None:
    try:
        with open(FLAGS.commands, "w") as file:
            file.writelines(shlex.join(command) + "\n" for command in commands)
    except OSError as error:
        message = f"--commands={FLAGS.commands}: cannot be written ({error.strerror})"
        raise UserError(message) from error


def _require_arm(name: str | None, points: Sequence[SweepPoint]) -> None:
    arms = list(dict.fromkeys(point.arm for point in points))
    if name and name not in arms:
        raise UserError(f"--baseline={name}: the arms are {', '.join(arms)}")


def _print_results(folder: SweepFolder, points: Sequence[SweepPoint], console: Console) -> None:
    """The tables and the report of what is done."""
    from moe_jax.sweeps.report import write_report
    from moe_jax.sweeps.table import arms_of, default_metric
    from moe_jax.sweeps.view import arms_table, row_problems

    rows = folder.write_results(points, FLAGS.metric, FLAGS.baseline)
    for problem in row_problems(rows):
        console.print(problem, soft_wrap=True)
    metric = FLAGS.metric or default_metric(rows)
    arms = arms_of(rows, metric, FLAGS.baseline)
    console.print(arms_table(arms, metric))
    console.print(f"wrote {write_report(folder.path, rows, arms, metric)}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run_command(main, usage=USAGE, flags=FLAGS))
