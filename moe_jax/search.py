"""Command: searches good values of a config's settings."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from absl import flags

from moe_jax.cli import Arguments, command_flags, importing, run_command, trust_flag
from moe_jax.config.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from moe_jax.sweeps.folder import SweepFolder
    from moe_jax.sweeps.search import Search, Study
    from moe_jax.sweeps.search_space import Space
    from moe_jax.training.experiment import Experiment

USAGE = """
usage: python -m moe_jax.search --config=FILE.py[:arg] --out=DIR --space=... [--config.a.b=VALUE]

Runs trials of the config, each with other values, chosen by what came out before (Optuna's TPE).
The same command goes on where it was stopped or killed; a larger --trials adds more.
  python -m moe_jax.search --config=configs/quickstart.py --out=runs/search --trials=40 \\
    --space="optimizer.learning_rate = log(1e-3, 3e-2); moe.router.k = 1, 2, 4; \\
             moe.losses.load_balance.coefficient = log(1e-4, 0.1)"
"""
FLAGS = command_flags("config")
trust_flag(FLAGS)
flags.DEFINE_string("out", None, "the folder of the search", flag_values=FLAGS, required=True)
text = "PATH=log(LOW,HIGH) | uniform(LOW,HIGH) | int(LOW,HIGH,STEP) | VALUE,VALUE; ..."
flags.DEFINE_string("space", None, text, flag_values=FLAGS, required=True)
flags.DEFINE_integer("trials", 20, "of the whole search", 1, flag_values=FLAGS)
flags.DEFINE_integer("workers", 1, "trials at a time, on this machine", 1, flag_values=FLAGS)
flags.DEFINE_string(
    "metric", None, "of evaluations (default: the task's headline)", flag_values=FLAGS
)
flags.DEFINE_enum("sampler", "tpe", ["tpe", "random"], "of values", flag_values=FLAGS)
flags.DEFINE_enum(
    "pruner",
    "none",
    ["none", "halving", "hyperband", "median"],
    "which trials to end early, by their evaluations",
    flag_values=FLAGS,
)
text = "a database's URL, for machines without a common folder (default: a journal in --out)"
flags.DEFINE_string("storage", None, text, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of the sampler", 0, 2**32 - 1, flag_values=FLAGS)


def main(arguments: Arguments) -> int:
    # Imported here: --help and a misspelt flag need no JAX.
    with importing():
        from moe_jax.config.overrides import load_config
        from moe_jax.sweeps.engine import Job
        from moe_jax.sweeps.folder import SweepFolder
        from moe_jax.sweeps.points import SweepPoint, build_point
        from moe_jax.sweeps.search import Search
        from moe_jax.sweeps.search_space import distributions, parse_space
        from moe_jax.sweeps.table import headlines_of, require_metric
        from moe_jax.sweeps.view import LiveTable, wide_console
        from moe_jax.training.experiment import Experiment

    space = parse_space(FLAGS.space)
    common = dict(arguments.overrides)
    if both := sorted(space.keys() & common.keys()):
        raise UserError(f"both --space and --config. set {', '.join(both)}")
    base = load_config(FLAGS.config, common, Experiment)
    if FLAGS.pruner != "none" and not 0 < base.evaluation.every < base.steps:
        raise UserError(
            f"--pruner={FLAGS.pruner} needs evaluations on the way: config.evaluation.every is "
            f"{base.evaluation.every}, config.steps {base.steps}"
        )

    def build(parameters: Mapping[str, object], name: str) -> SweepPoint:
        return build_point(FLAGS.config, parameters, arm=name, name=name, common=common)

    build({path: domain.first for path, domain in space.items()}, "trial")  # the paths exist
    metric = FLAGS.metric or headlines_of([base])[0]
    require_metric(metric, [base])
    folder = SweepFolder(FLAGS.out)
    study = _study(folder, base, space, metric)
    search = Search(
        study=study,
        folder=folder,
        distributions=distributions(space),
        build=build,
        job_of=folder.job,
        metric=metric,
        prunes=FLAGS.pruner != "none",
    )
    console = wide_console()
    jobs: list[Job] = []
    with LiveTable(console, jobs) as live:
        search.run(FLAGS.trials, FLAGS.workers, live, jobs)
    live.print_failures()
    return _print_results(search, console, arguments.overrides)


def _study(folder: SweepFolder, base: Experiment, space: Space, metric: str) -> Study:
    """The study of the folder, which is held to what was asked first."""
    from moe_jax.sweeps.points import question_of
    from moe_jax.sweeps.search import hold_to, open_study
    from moe_jax.sweeps.search_space import to_json
    from moe_jax.sweeps.table import higher_is_better

    maximize = higher_is_better(metric)
    asked = question_of(
        base,
        kind="search",
        metric=metric,
        direction="maximize" if maximize else "minimize",
        space=to_json(space),
        storage=_storage_name(FLAGS.storage),
        seed=base.seed,
    )
    folder.remember(asked)
    study = open_study(
        folder.path,
        FLAGS.storage,
        sampler=FLAGS.sampler,
        pruner=FLAGS.pruner,
        maximize=maximize,
        seed=FLAGS.seed,
    )
    hold_to(study, asked)
    return study


def _storage_name(url: str | None) -> str:
    """Which storage it is, without what may be a password in its URL."""
    return "journal" if url is None else hashlib.sha256(url.encode()).hexdigest()[:16]


def _print_results(search: Search, console: Console, common: Sequence[tuple[str, object]]) -> int:
    """The best trials, the report, how to train the best; 1 where no trial was completed."""
    from moe_jax.sweeps.report import write_report
    from moe_jax.sweeps.search import best_trials, command_of, importances
    from moe_jax.sweeps.table import arms_of
    from moe_jax.sweeps.view import row_problems, trials_table

    points = search.points()
    search.folder.write_points(points)
    rows = search.folder.write_results(points, search.metric, None)
    for problem in row_problems(rows):
        console.print(problem, soft_wrap=True)
    shares = importances(search.study)
    console.print(trials_table(search.study, search.metric, shares))
    best = best_trials(search.study, 1)
    if not best:
        console.print("no trial was completed")
        return 1
    arms = arms_of(rows, search.metric)
    report = write_report(search.folder.path, rows, arms, search.metric, shares)
    console.print(f"wrote {report}", soft_wrap=True)
    command = command_of(FLAGS.config, common, best[0].params)
    console.print(f"the best again: {command}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, usage=USAGE, flags=FLAGS))
