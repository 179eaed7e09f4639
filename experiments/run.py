"""Runs a paper card: its sweep, the verdict on each of its claims, its figure.

    python -m experiments.run NAME --scale=tiny --out=DIR [--workers=2]
    python -m experiments.run NAME --scale=pod --plan      (what it needs; nothing is run)

The same command goes on where it was stopped, for the claims, bands and seeds that stood when it
was given first; others are refused. --record keeps the figures in the card's folder, from which
`python -m experiments.index` makes docs/results.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from moe_jax.cli import Arguments, command_flags, run_command
from moe_jax.config.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.card import LoadedCard, Scale
    from moe_jax.planning.report import LayoutPlan
    from moe_jax.sweeps.points import SweepPoint

DAY = 86_400  # seconds

FLAGS = command_flags()
flags.DEFINE_string("scale", "tiny", "a size that the card has", flag_values=FLAGS)
flags.DEFINE_string("out", None, "the folder of the sweep", flag_values=FLAGS)
flags.DEFINE_integer("workers", 1, "runs at a time", 1, flag_values=FLAGS)
flags.DEFINE_boolean("plan", False, "show what it takes, and run nothing", flag_values=FLAGS)
flags.DEFINE_boolean("record", False, "keep the figures in the card's folder", flag_values=FLAGS)


def main(arguments: Arguments, card: LoadedCard) -> int:
    from moe_jax.sweeps.view import wide_console

    scale = card.scale(FLAGS.scale)
    console = wide_console()
    if FLAGS.plan:
        plan(card, scale, console)
        return 0
    if not FLAGS.out:
        raise UserError("--out is required, the folder of the sweep (or --plan)")
    return run(card, scale, console)


def run(card: LoadedCard, scale: Scale, console: Console) -> int:
    """The sweep, then what it says; 0 where all points are done."""
    from experiments.record import make_record, save_record, text
    from moe_jax.sweeps.folder import SweepFolder
    from moe_jax.sweeps.view import plan_table, run_shown

    points = card.points(scale)
    console.print(plan_table(points))
    folder = SweepFolder(FLAGS.out)
    folder.prepare(points, card.registration(FLAGS.scale))
    jobs = [folder.job(point, command(card, folder, point)) for point in points]
    all_done = run_shown(jobs, FLAGS.workers, console)
    record = make_record(card, FLAGS.scale, points, folder)
    console.print(text(card, record), markup=False, soft_wrap=True)
    if not all_done:
        return 1
    for file in save_record(card, record, FLAGS.out):
        console.print(f"wrote {file}", soft_wrap=True)
    if FLAGS.record:
        for file in save_record(card, record, card.folder):
            console.print(f"wrote {file}", soft_wrap=True)
    return 0


def command(card: LoadedCard, folder, point) -> list[str]:
    """Trains the point and measures what the card asks for."""
    workdir = folder.point_folder(point)
    return [
        *(sys.executable, "-m", "experiments.trial"),
        *(f"--card={card.name}", f"--workdir={workdir}"),
    ]


def plan(card: LoadedCard, scale: Scale, console: Console) -> None:
    """The runs and, for a pod, what each arm is estimated to take there."""
    from moe_jax.planning import report
    from moe_jax.sweeps.view import plan_table

    points = card.points(scale)
    console.print(plan_table(points))
    if scale.topology is None:
        return
    total = 0.0
    for arm, one in plans(points, scale.topology).items():
        console.print(f"\n{arm}", markup=False, style="bold")
        console.print(report.text(one), markup=False, highlight=False, soft_wrap=True)
        days = one.roofline.model / one.roofline.expected_mfu * one.candidate.experiment.steps / DAY
        total += days * sum(point.arm == arm for point in points)
        console.print(f"a run at that MFU: {days:.1f} days", highlight=False)
    console.print(f"\nall runs: {total:.1f} days of {scale.topology}", highlight=False)


def plans(points: Sequence[SweepPoint], name: str) -> dict[str, LayoutPlan]:
    """What moe_jax.plan estimates for each arm on a topology."""
    from moe_jax.planning.hardware import topology_of
    from moe_jax.planning.report import LayoutPlan
    from moe_jax.planning.search import candidate

    topology = topology_of(name)
    arms = {point.arm: point.experiment for point in reversed(points)}
    return {
        arm: LayoutPlan(topology=topology, candidate=candidate(arms[arm], topology))
        for arm in dict.fromkeys(point.arm for point in points)
    }


def parts(argv: list[str]) -> tuple[str, list[str]]:
    """The card's name and the flags."""
    given = [argument for argument in argv if not argument.startswith("-")]
    return (given or [""])[0], [argument for argument in argv if argument not in given[:1]]


if __name__ == "__main__":
    name, rest = parts(sys.argv[1:])

    def body(arguments: Arguments) -> int:
        from experiments.card import load_card, names

        if not name:
            raise UserError(f"name a card: {', '.join(names())}")
        return main(arguments, load_card(name))

    sys.exit(run_command(body, usage=__doc__ or "", flags=FLAGS, argv=rest))
