"""Door: evaluates a checkpoint, with other capacity factors and numbers of experts."""

from __future__ import annotations

import json
import sys

from absl import flags

from moe_jax.config.cli import Arguments, door_flags, process_flags, run_door
from moe_jax.config.errors import UserError

USAGE = """
usage: python -m moe_jax.evaluate --workdir=DIR [--capacity_factor=none,1.0,2.0] [--k=1,2]

Evaluates a checkpoint of the run in DIR on its evaluation split, once for each combination of
the given capacity factors ("none" is dropless) and numbers of experts per token.
  python -m moe_jax.evaluate --workdir=runs/quickstart --capacity_factor=none,1.25,1.0,0.5
"""
FLAGS = door_flags("workdir")
flags.DEFINE_list("capacity_factor", None, "factors (default: the config's)", flag_values=FLAGS)
flags.DEFINE_list("k", None, "experts per token (default: the config's)", flag_values=FLAGS)
flags.DEFINE_integer("batches", None, "batches (default: all)", flag_values=FLAGS)
flags.DEFINE_integer("step", None, "checkpoint (default: the newest)", flag_values=FLAGS)
flags.DEFINE_string("json", None, "also write all metrics to this file", flag_values=FLAGS)
process_flags(FLAGS)

SHOWN = (
    "cross_entropy",
    "bits_per_byte",
    "accuracy",
    "moe/max_violation",
    "moe/dropped_fraction",
    "moe/dropped_token_fraction",
)


def main(arguments: Arguments) -> int:
    from moe_jax.parallel.hosts import joined

    if FLAGS.batches is not None and FLAGS.batches < 1:
        raise UserError("--batches must be at least 1")
    with joined(
        FLAGS.coordinator,
        FLAGS.processes,
        FLAGS.process,
        timeout=FLAGS.join_timeout,
        debug=FLAGS.debug,
    ):
        evaluate_all(combinations(FLAGS.capacity_factor, FLAGS.k))
    return 0


def evaluate_all(points: list[dict[str, str]]) -> None:
    """Evaluates the run once for each point and tells the metrics."""
    from moe_jax.notebook import load
    from moe_jax.parallel.agreement import say
    from moe_jax.parallel.hosts import is_primary

    results = []
    for overrides in points:
        run = load(FLAGS.workdir, step=FLAGS.step, overrides=overrides)
        metrics = run.evaluate(FLAGS.batches)
        results.append({"step": run.step, "overrides": overrides, "metrics": metrics})
        told = ", ".join(f"{path}={value}" for path, value in overrides.items()) or "as trained"
        say(f"step {run.step}, {told}")
        for name in SHOWN:
            if name in metrics:
                say(f"  {name:28} {metrics[name]:.4f}")
    if FLAGS.json and is_primary():
        with open(FLAGS.json, "w") as file:
            json.dump(results, file, indent=2)


def combinations(factors: list[str] | None, ks: list[str] | None) -> list[dict[str, str]]:
    """Overrides for every pair of a factor and a k."""
    points: list[dict[str, str]] = [{}]
    for path, values in (("evaluation.capacity_factor", factors), ("moe.router.k", ks)):
        if values:
            points = [{**point, path: value} for point in points for value in values]
    return points


if __name__ == "__main__":
    sys.exit(run_door(main, usage=USAGE, flags=FLAGS))
