"""The report of a sweep: one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe_jax.sweeps.table import Arm, Row


def write_report(folder: Path, rows: Sequence[Row], arms: Sequence[Arm], metric: str) -> Path:
    raise NotImplementedError
