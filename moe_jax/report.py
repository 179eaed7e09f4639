"""Door: writes one self-contained HTML report on one run or several."""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from moe_jax.config.cli import Arguments, door_flags, run_door
from moe_jax.config.errors import UserError

USAGE = """
usage: python -m moe_jax.report --workdir=DIR[,DIR2,...] [--workdir=DIR3 ...] [--out=FILE.html]

Writes a page with the curves, the load of the experts, the speed and the config of a run, finished
or not; with several runs, over each other. It loads nothing from anywhere.
  python -m moe_jax.report --workdir=runs/quickstart
  python -m moe_jax.report --workdir=runs/quickstart,runs/dense --out=both.html
"""
FLAGS = door_flags()
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


def main(arguments: Arguments) -> int:
    from moe_jax.analysis.report import write_report

    workdirs = [folder for given in FLAGS.workdir for folder in _folders(given)]
    if "" in workdirs:
        raise UserError("--workdir is empty, or nothing stands beside a comma")
    file = write_report(workdirs, FLAGS.out)
    print(f"wrote {file} ({file.stat().st_size / 1e3:,.0f} kB)")
    return 0


def _folders(given: str) -> list[str]:
    """The folders of one --workdir; a folder with a comma in its name stays whole."""
    return [given] if Path(given).expanduser().is_dir() else given.split(",")


if __name__ == "__main__":
    sys.exit(run_door(main, usage=USAGE, flags=FLAGS))
