"""Some rows of the evaluation with what a model makes of them, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from moe_jax.analysis.report.tables import table


@dataclass(frozen=True)
class Samples:
    """intro: a sentence on the rows. head, rows: text."""

    intro: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def shown(found: Samples | None, step: int) -> str:
    """Nothing where there is no row."""
    if found is None or not found.rows:
        return ""
    rows = [[escape(text) for text in row] for row in found.rows]
    intro = f"<p>{escape(found.intro)} At step {step:,}.</p>"
    return intro + table([escape(text) for text in found.head], rows, kind="samples")


STYLE = """
.samples td { white-space: normal; text-align: left; vertical-align: top; min-width: 60px;
  max-width: 340px; }
"""
