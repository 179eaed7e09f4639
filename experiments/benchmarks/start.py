"""How soon every command answers: --help, and a mistake in the config.

    python -m experiments.benchmarks.start [--repeats=5] [--tree=EARLIER --tree=NOW] [--only=TEXT]

Each command is a process of its own; printed are medians of --repeats of them, by the clock and of
processors (user + system), the second of which other programs on the machine disturb less. With
several trees, folders with a clone each, every command is started in one after the other.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from moe_jax.cli import Arguments, command_flags, run_command
from moe_jax.config.errors import UserError

NAMES = "train evaluate generate report plan check sweep search doctor conventions data.prepare"
PROGRAMS = (
    *(f"moe_jax.{name}" for name in NAMES.split()),
    *(f"launch.{name}" for name in ("local", "slurm", "kubernetes", "tpu_vm")),
    *(f"experiments.{name}" for name in ("run", "index", "routers.run", "benchmarks.moe_layer")),
)
CONFIG, MISTAKE = "--config=configs/quickstart.py", "--config.moe.num_expert=4"
COMMANDS = {f"{program} --help": (program, "--help") for program in PROGRAMS} | {
    "train, a wrong key": ("moe_jax.train", CONFIG, "--workdir=none", MISTAKE),
    "train, no such file": ("moe_jax.train", "--config=configs/none.py", "--workdir=none"),
    "plan, a wrong key": ("moe_jax.plan", CONFIG, "--topology=h200:8", MISTAKE),
    "check, a wrong key": ("moe_jax.check", CONFIG, MISTAKE),
    "sweep, a wrong key": ("moe_jax.sweep", CONFIG, "--out=none", "--sweep=seed=0..1", MISTAKE),
}

FLAGS = command_flags()
flags.DEFINE_integer("repeats", 5, "processes of each command", 1, flag_values=FLAGS)
flags.DEFINE_multi_string("tree", ["."], "a folder with a clone", flag_values=FLAGS)
flags.DEFINE_string("only", "", "commands with this in their name", flag_values=FLAGS)


def main(arguments: Arguments) -> int:
    del arguments
    chosen = {name: argv for name, argv in COMMANDS.items() if FLAGS.only in name}
    if not chosen:
        raise UserError(f"--only={FLAGS.only}: there are {', '.join(COMMANDS)}")
    print(f"{'seconds':44}" + "".join(f"{'clock':>8}{'CPU':>7}" for _ in FLAGS.tree))
    for name, argv in chosen.items():
        runs = [[once(tree, argv) for tree in FLAGS.tree] for _ in range(FLAGS.repeats)]
        cells = ""
        for one_tree in zip(*runs, strict=True):
            clock, processors = map(statistics.median, zip(*one_tree, strict=True))
            cells += f"{clock:8.2f}{processors:7.2f}"
        print(f"{name:44}{cells}", flush=True)
    return 0


def once(tree: str, argv: tuple[str, ...]) -> tuple[float, float]:
    """(clock, processors) of one process. UserError where it says what nobody expects."""
    environment = {**os.environ, "PYTHONPATH": str(Path(tree).absolute())}
    before, start = used(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *argv], cwd=tree, env=environment, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start, used() - before
    if done.returncode != (0 if "--help" in argv else 2):
        raise UserError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr[-500:]}")
    return seconds


def used() -> float:
    """Seconds of processors that processes started here have taken."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__ or "", flags=FLAGS))
