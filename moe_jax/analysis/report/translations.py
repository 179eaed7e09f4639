"""Texts that a model translated, beside their sources and what people made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from moe_jax.analysis.report.tables import table


@dataclass(frozen=True)
class Translated:
    """A row of a translating run. languages: "da-en", from Danish into English."""

    languages: str
    source: str
    reference: str
    written: str


def shown(found: Sequence[Translated], step: int) -> str:
    """A table; nothing where there is no row."""
    if not found:
        return ""
    intro = (
        "<p>Some held-out texts, as people translated them and as the model does (beam search), at "
        f"step {step:,}.</p>"
    )
    rows = [
        [escape(text) for text in (one.languages, one.source, one.reference, one.written)]
        for one in found
    ]
    return intro + table(("pair", "source", "reference", "the model"), rows, kind="translations")


STYLE = """
.translations td { white-space: normal; text-align: left; vertical-align: top; min-width: 160px;
  max-width: 340px; }
"""
