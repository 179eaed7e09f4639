"""Command: what would a config take on hardware that is not here?"""

from __future__ import annotations

import json
import sys

from absl import flags

from moe_jax.cli import Arguments, command_flags, importing, run_command
from moe_jax.config.errors import UserError
from moe_jax.config.paths import file_to_write, write_whole

USAGE = """
usage: python -m moe_jax.plan --config=FILE.py[:arg] --topology=NAME [--config.a.b=VALUE ...]

Compiles the training step of the config for absent hardware, and tells what one device holds,
computes and sends, and what binds. TPU: v4:4x4x4, v5e:16x16, v5p:4x4x8, v6e:16x16 (extra `tpu`);
GPU: h100:8, h200:64 (extra `gpu-plan`). Without the extra: an estimate by formula.
With --parameters, which needs no topology: a table of the parameters, what each is a stack of,
whether it decays, and what the optimizer does with it.
  python -m moe_jax.plan --config=configs/mixtral_8x7b.py --topology=v5p:4x4x8
  python -m moe_jax.plan --config=configs/olmoe_1b_7b.py --topology=h200:64 --search
"""
FLAGS = command_flags("config")
flags.DEFINE_string("topology", None, "KIND:SIZE, as v5p:4x4x8 or h200:64", flag_values=FLAGS)
flags.DEFINE_boolean("parameters", False, "only a table of the parameters", flag_values=FLAGS)
flags.DEFINE_boolean("analytic", False, "the estimate alone, no compiler", flag_values=FLAGS)
flags.DEFINE_boolean(
    "search",
    False,
    "rank meshes, transports and recomputation by the estimate, and compile the best three",
    flag_values=FLAGS,
)
flags.DEFINE_string("json", None, "also write the plan to this file", flag_values=FLAGS)
BEST = 3


def main(arguments: Arguments) -> int:
    # Imported here: --help and a misspelt flag need no JAX, and JAX must not start before.
    from moe_jax.planning import topologies

    topologies.prepare_environment()
    with importing():
        from moe_jax.config.overrides import load_config
        from moe_jax.planning import report
        from moe_jax.planning.hardware import topology_of
        from moe_jax.planning.search import candidate, search
        from moe_jax.training.experiment import Experiment

    if FLAGS.parameters:
        return _parameters(load_config(FLAGS.config, arguments.overrides, Experiment))
    if FLAGS.topology is None:
        raise UserError("--topology is required (or --parameters)")
    out = file_to_write(FLAGS.json, "--json") if FLAGS.json else None
    topology = topology_of(FLAGS.topology)
    experiment = load_config(FLAGS.config, arguments.overrides, Experiment)
    extra = topologies.missing_extra(topology)
    if extra and not FLAGS.analytic:
        print(f"by formula only: compiling needs pip install 'moe_jax[{extra}]'", flush=True)
    devices = None if extra or FLAGS.analytic else topologies.absent_devices(topology)
    if FLAGS.search:
        found = search(experiment, topology)
        print(report.ranking(found), "\n", flush=True)
        chosen = found[:BEST]
    else:
        chosen = [candidate(experiment, topology)]
    plans = []
    for one in chosen:
        plans.append(_plan(report, topology, one, devices))
        print(report.text(plans[-1]), "\n", flush=True)
        if not FLAGS.search and (message := report.advice(plans[-1])):
            print(message, "\n", flush=True)
    if out is not None:
        content = [report.to_json(plan) for plan in plans]
        write_whole(out, json.dumps(content, indent=2) + "\n")
    return 0 if all(plan.fits for plan in plans) else 1


def _parameters(experiment):
    from moe_jax.training.optimizer_table import as_text, table_of

    print(as_text(table_of(experiment)))
    return 0


def _plan(report, topology, one, devices):
    from moe_jax.planning.compiled import compile_step

    compiled = None if devices is None else compile_step(one.experiment, devices)
    return report.LayoutPlan(topology=topology, candidate=one, compiled=compiled)


if __name__ == "__main__":
    sys.exit(run_command(main, usage=USAGE, flags=FLAGS))
