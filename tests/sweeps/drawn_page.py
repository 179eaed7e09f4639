"""The page of a drawn sweep."""

from __future__ import annotations

import json
from pathlib import Path

from moe_jax.sweeps import space as h
from moe_jax.sweeps.folder import SweepFolder
from moe_jax.sweeps.matching import Matching
from moe_jax.sweeps.points import resolve
from moe_jax.sweeps.report import build_report, write_report
from moe_jax.sweeps.table import arms_of

CONFIG = "configs/quickstart.py"


def page(tmp_path: Path, sweep: h.Sweep, values, failed: tuple[str, ...] = ()) -> str:
    """The report of a sweep whose points ended with values(experiment)."""
    folder = SweepFolder(tmp_path / "sweep")
    points = resolve(CONFIG, {}, sweep, Matching())
    folder.prepare(points)
    for point in points:
        workdir = folder.point_folder(point)
        if point.name in failed:
            (workdir / "log.txt").write_text("$ command\nerror: <it> went wrong\n")
            continue
        value = values(point.experiment)
        lines = [
            {"step": step, "split": "eval", "bits_per_byte": value + gap, "moe/max_violation": 0.5}
            for step, gap in ((300, 1.0), (600, 0.0))
        ]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        (workdir / "outcome.json").write_text('{"seconds": 1}\n')
    rows = folder.rows(points)
    file = write_report(folder.path, rows, arms_of(rows, "bits_per_byte"), "bits_per_byte")
    html = file.read_text("utf-8")
    assert html == build_report(folder.path, rows, arms_of(rows, "bits_per_byte"), "bits_per_byte")
    return html
