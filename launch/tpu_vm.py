"""The gcloud commands that run a config on TPU VMs: create, copy, install, start, delete."""

from __future__ import annotations

import functools
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch.command import Command, require_label, split
from launch.hardware import Slice, slice_of
from launch.xla_flags import variables
from moe_jax.cli import Arguments, command_flags, run_command
from moe_jax.config.errors import UserError

USAGE = """
usage: python -m launch.tpu_vm --name=NAME --topology=v5e-256 --zone=ZONE -- ARGUMENTS

Creates a TPU slice, copies this clone to every host, installs it, and starts moe_jax.train with the
arguments behind --, as long as this command lives. --dry_run only prints the commands. They are the
ones to give by hand too; started again on a slice that is there (--nocreate), the run goes on.
  python -m launch.tpu_vm --name=olmoe --topology=v5p-128 --zone=us-east5-a --dry_run -- \\
    --config=configs/olmoe_1b_7b.py --workdir=gs://BUCKET/olmoe
"""
FLAGS = command_flags()
flags.DEFINE_string("name", None, "of the slice", flag_values=FLAGS, required=True)
text = "v5e-256, v5p-128, v6e-64, or as v5p:4x4x8"
flags.DEFINE_string("topology", None, text, flag_values=FLAGS, required=True)
flags.DEFINE_string("zone", None, "of Google Cloud", flag_values=FLAGS, required=True)
flags.DEFINE_string("project", None, "of Google Cloud (default: gcloud's)", flag_values=FLAGS)
flags.DEFINE_string("runtime", None, "software version (default: the kind's)", flag_values=FLAGS)
flags.DEFINE_string("module", "moe_jax.train", "the module that is run", flag_values=FLAGS)
flags.DEFINE_boolean("spot", False, "a slice that may be taken away", flag_values=FLAGS)
flags.DEFINE_boolean("create", True, "make the slice first", flag_values=FLAGS)
flags.DEFINE_boolean("delete", False, "delete the slice once the run is done", flag_values=FLAGS)
flags.DEFINE_boolean("dry_run", False, "print the commands", flag_values=FLAGS)

CLONE = "moe_jax"
LEFT_BEHIND = (".venv", ".cache", "runs", "data")


def main(arguments: Arguments, command: Sequence[str]) -> int:
    where = slice_of(FLAGS.topology)
    if where.tpu is None:
        raise UserError(f"--topology={FLAGS.topology}: is no TPU")
    if not where.usual:
        usual = ", ".join(where.tpu.shapes.values())
        raise UserError(f"--topology={FLAGS.topology}: TPU VMs come as {usual}")
    steps = commands(
        require_label(FLAGS.name),
        where,
        Command.of(FLAGS.module, command),
        zone=FLAGS.zone,
        project=FLAGS.project,
        runtime=FLAGS.runtime,
        spot=FLAGS.spot,
        create=FLAGS.create,
        delete=FLAGS.delete,
    )
    for step in steps:
        print(shlex.join(step), flush=True)
        if not FLAGS.dry_run and (code := call(step)):
            return code
    return 0


def call(step: Sequence[str]) -> int:
    try:
        return subprocess.run(step).returncode
    except FileNotFoundError as error:
        message = f"{step[0]} is not installed; --dry_run prints the commands"
        raise UserError(message) from error


def commands(
    name: str,
    where: Slice,
    command: Command,
    *,
    zone: str,
    project: str | None = None,
    runtime: str | None = None,
    spot: bool = False,
    create: bool = True,
    delete: bool = False,
) -> list[list[str]]:
    """One after the other. The same command goes to every host: JAX finds the others by itself."""
    assert where.tpu is not None
    place = [f"--zone={zone}", *([f"--project={project}"] if project else [])]
    vm = ["gcloud", "compute", "tpus", "tpu-vm"]

    def everywhere(script: str) -> list[str]:
        return [*vm, "ssh", name, *place, "--worker=all", f"--command={script}"]

    set_flags = " ".join(f"{key}={shlex.quote(value)}" for key, value in variables("tpu").items())
    archive = Path(tempfile.gettempdir()) / f"{name}.tar.gz"
    left_behind = [f"--exclude=./{folder}" for folder in LEFT_BEHIND]
    steps = [
        ["tar", "--create", "--gzip", f"--file={archive}", *left_behind, "."],
        [*vm, "scp", str(archive), f"{name}:", *place, "--worker=all"],
        everywhere(installation(archive.name)),
        everywhere(f"cd {CLONE} && . .venv/bin/activate && {set_flags} {command}"),
    ]
    if create:
        made = [
            *(*vm, "create", name, *place, f"--accelerator-type={where.accelerator}"),
            f"--version={runtime or where.tpu.runtime}",
            *(["--spot"] if spot else []),
        ]
        steps.insert(0, made)
    if delete:
        steps.append([*vm, "delete", name, *place, "--quiet"])
    return steps


def installation(archive: str) -> str:
    """By uv, which brings the Python that these machines lack: theirs is 3.10."""
    return " && ".join(
        [
            f"mkdir -p {CLONE}",
            f"tar --extract --gzip --file={archive} --directory={CLONE}",
            f"cd {CLONE}",
            "python3 -m pip install --quiet --user uv",
            "python3 -m uv venv --quiet --allow-existing --python=3.11",
            "python3 -m uv pip install --quiet --editable='.[tpu,text,gcs]'",
        ]
    )


if __name__ == "__main__":
    own, command = split(sys.argv[1:])
    body = functools.partial(main, command=command)
    sys.exit(run_command(body, usage=USAGE, flags=FLAGS, argv=own))
