"""The training step of two trees of this repository, in turn.

    python -m experiments.benchmarks.two_trees [--size=90m] [--pairs=9] [--python=PYTHON]
                                              --tree=EARLIER --tree=NOW

Each tree runs in a process of its own, started in its folder; the processes take turns step by
step, the order changes with each pair, and told are medians of the ratios within a pair. Two
processes that are not timed so differ by more than most changes do. --python: the interpreter,
with all dependencies, that both run under.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from experiments.benchmarks.train_step import SIZES
from moe_jax.cli import Arguments, command_flags, run_command
from moe_jax.config.errors import UserError

FLAGS = command_flags()
flags.DEFINE_enum("size", "3.5m", list(SIZES), "the model", flag_values=FLAGS)
flags.DEFINE_integer("pairs", 9, "pairs of steps", flag_values=FLAGS)
flags.DEFINE_string("python", sys.executable, "the interpreter", flag_values=FLAGS)
flags.DEFINE_multi_string("tree", [], "a folder with a clone", flag_values=FLAGS)

# Of the tree's own modules, so it may use only what both trees have.
SERVE = """
import os, sys, time
sys.path.insert(0, os.getcwd())
import jax, numpy as np
from experiments.benchmarks.train_step import SIZES
try:
    from experiments.benchmarks.steps import program_of
except ImportError:  # an earlier tree
    from experiments.benchmarks.train_step import program_of
from moe_jax.parallel.host_memory import keep_freed_memory
keep_freed_memory()
size = SIZES[sys.argv[1]]
program, rng = program_of(size), np.random.default_rng(0)
tokens = rng.integers(0, size["V"], (size["B"], size["S"] + 1)).astype(np.int32)
raw = program.put({"tokens": tokens, "segments": np.ones_like(tokens)})
state = program.init()
name = "scalars" if hasattr(program, "scalars") else "knobs"  # an earlier tree
scalars = getattr(program, name)(0)
def step(state):
    state, result = program.train_step(state, raw, scalars)
    return jax.block_until_ready((state, result))[0]
state = step(step(state))
print("ready", flush=True)
for line in sys.stdin:
    clock, processors = time.perf_counter(), time.process_time()
    state = step(state)
    print(time.perf_counter() - clock, time.process_time() - processors, flush=True)
"""


@contextlib.contextmanager
def served(tree: str) -> Iterator[subprocess.Popen[str]]:
    command = [FLAGS.python, "-c", SERVE, FLAGS.size]
    environment = {**os.environ, "PYTHONPATH": str(Path(tree).absolute())}
    with subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise UserError("a process ended before its time", exit_code=1)
    return line


def main(arguments: Arguments) -> int:
    import numpy as np

    trees = FLAGS.tree
    if len(trees) != 2:
        raise UserError("give two trees: --tree=EARLIER --tree=NOW")
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(served(tree)) for tree in trees]
        for process in processes:
            while answer(process) != "ready\n":
                pass
        times = np.zeros((FLAGS.pairs, 2, 2))
        for pair in range(FLAGS.pairs):
            for n in (0, 1) if pair % 2 else (1, 0):
                stdin = processes[n].stdin
                assert stdin is not None
                stdin.write("step\n")
                stdin.flush()
                times[pair, n] = list(map(float, answer(processes[n]).split()))
                time.sleep(0.01)
    for n, tree in enumerate(trees):
        clock, processors = np.median(times[:, n] / times[:, 0], axis=0)
        print(
            f"{FLAGS.size} {tree}: {1e3 * np.median(times[:, n, 0]):.0f} ms, over the first "
            f"{clock:.3f} by the clock, {processors:.3f} of processors"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, usage=__doc__ or "", flags=FLAGS))
