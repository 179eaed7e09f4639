"""Door: many runs of one config, each with other values."""

from __future__ import annotations

import shlex
import sys

from absl import flags

from moe_jax.config.cli import Arguments, door_flags, run_door
from moe_jax.config.errors import UserError

USAGE = """
usage: python -m moe_jax.sweep --config=FILE.py[:arg] --out=DIR [--sweep=...] [--config.a.b=V]

Checks every point of the sweep, then runs them, each in its own folder; the same command goes on
where it was stopped or killed. Without --sweep: the config file's own get_sweep(h).
  python -m moe_jax.sweep --config=configs/quickstart.py --out=runs/k --workers=2 \\
    --sweep="moe.router.k=1,2,4; seed=0..2"
Several paths that go together: "(moe.num_experts, moe.expert_dim) = (8, 256), (16, 128)".
"""
FLAGS = door_flags("config")
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
    from moe_jax.sweeps.definition import read_sweep
    from moe_jax.sweeps.folder import SweepFolder
    from moe_jax.sweeps.matching import Matching
    from moe_jax.sweeps.points import resolve
    from moe_jax.sweeps.report import write_report
    from moe_jax.sweeps.table import arms_of, default_metric
    from moe_jax.sweeps.view import arms_table, plan_table, run_shown, wide_console

    if FLAGS.match_width and not FLAGS.match:
        raise UserError("--match_width needs --match")
    points = resolve(
        FLAGS.config,
        arguments.overrides,
        read_sweep(FLAGS.sweep, FLAGS.config),
        Matching(FLAGS.match, FLAGS.match_width),
    )
    arm_names = list(dict.fromkeys(point.arm for point in points))
    if FLAGS.baseline and FLAGS.baseline not in arm_names:
        raise UserError(f"--baseline={FLAGS.baseline}: the arms are {', '.join(arm_names)}")
    console = wide_console()
    console.print(plan_table(points))
    if FLAGS.dry_run:
        return 0
    folder = SweepFolder(FLAGS.out)
    folder.prepare(points)
    if FLAGS.commands:
        with open(FLAGS.commands, "w") as file:
            file.writelines(shlex.join(folder.command(point)) + "\n" for point in points)
        console.print(f"wrote {len(points)} commands to {FLAGS.commands}")
        return 0
    all_done = run_shown([folder.job(point) for point in points], FLAGS.workers, console)
    rows = folder.write_results(points, FLAGS.metric, FLAGS.baseline)
    metric = FLAGS.metric or default_metric(rows)
    arms = arms_of(rows, metric, FLAGS.baseline)
    console.print(arms_table(arms, metric))
    console.print(f"wrote {write_report(folder.path, rows, arms, metric)}")
    return 0 if all_done else 1


if __name__ == "__main__":
    sys.exit(run_door(main, usage=USAGE, flags=FLAGS))
