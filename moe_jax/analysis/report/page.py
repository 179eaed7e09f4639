"""The whole page: from workdirs to one HTML text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from moe_jax.analysis.read_run import RunRecord, read_runs
from moe_jax.analysis.report import heat_map, line_chart
from moe_jax.analysis.report.assets import SCRIPT, STYLE
from moe_jax.analysis.report.routing import STYLE as ROUTING_STYLE
from moe_jax.analysis.report.routing import RoutingView, routing_sections
from moe_jax.analysis.report.sections import Section, sections
from moe_jax.analysis.report.tables import chip, is_finished, progress
from moe_jax.config.errors import NO_SPACE, UserError
from moe_jax.config.paths import folder_of, is_remote, resolved, write_whole

# The browser itself keeps the page from loading anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
BEFORE_ROUTES = ("summary", "learning", "load", "routing")
CONSTANTS = (
    f"const UNITS = {line_chart.UNITS}, PER_OCTAVE = {heat_map.PER_OCTAVE}, "
    f"LOWEST = {heat_map.LOWEST}, HIGHEST = {heat_map.HIGHEST}, NOTHING = {heat_map.NOTHING};"
)


def build_report(
    workdirs: Sequence[str | os.PathLike[str]], routing: RoutingView | None = None
) -> str:
    """One HTML page on the runs in `workdirs`, which loads nothing from anywhere.

    Runs may be going on still, and may be dense. routing: of the run, where there is one: its
    sections follow those on the load. Raises UserError for a folder without metrics.
    """
    runs = read_runs(workdirs)
    parts = sections(runs)
    if routing is not None:
        place = 1 + max(n for n, part in enumerate(parts) if part.id in BEFORE_ROUTES)
        parts[place:place] = routing_sections(routing)
    return _page(runs, parts)


def write_report(
    workdirs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    routing: RoutingView | None = None,
) -> Path:
    """Writes the page to `out` and returns where it is.

    By default report.html in the workdir, or, of several, in the folder that they have in common.
    Raises UserError as `build_report` does, and where the file cannot be written.
    """
    html = build_report(workdirs, routing)
    return write_page(html, folder_of(out) if out else default_file(workdirs))


def write_page(html: str, file: Path) -> Path:
    """Writes the page whole or not at all. UserError where it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, html)
    except OSError as error:
        exit_code = 1 if error.errno in NO_SPACE else 2
        message = f"{file}: cannot be written ({error.strerror})"
        raise UserError(message, exit_code=exit_code) from error
    return file


def default_file(workdirs: Sequence[str | os.PathLike[str]]) -> Path:
    """Where a report goes when nobody says where."""
    folders = {resolved(workdir) for workdir in workdirs}
    if len(folders) == 1:
        return folder_of(workdirs[0]) / "report.html"
    if any(map(is_remote, folders)):
        raise UserError("a report on runs in an object store needs --out=FILE")
    return Path(os.path.commonpath([folder.parent for folder in folders])) / "report.html"


def _page(runs: Sequence[RunRecord], parts: Sequence[Section]) -> str:
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    chips = "".join(chip(run, number) for number, run in enumerate(runs)) if len(runs) > 1 else ""
    return document(title, _subtitle(runs), parts, chips=chips, style=ROUTING_STYLE)


def document(
    title: str,
    subtitle: str,
    parts: Sequence[Section],
    *,
    chips: str = "",
    style: str = "",
    script: str = "",
) -> str:
    """A page of sections. chips: HTML beside their links; style, script: beyond the common ones."""
    links = "".join(f'<a href="#{part.id}">{escape(part.title)}</a>' for part in parts)
    body = "".join(
        f'<section id="{part.id}"><h2>{escape(part.title)}</h2>{part.html}</section>'
        for part in parts
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)} · moe_jax report</title><style>{STYLE}{style}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>"
        f'<nav>{links}<span class="chips">{chips}</span></nav><main>{body}</main>'
        '<footer></footer><div id="tip"></div>'
        f"<script>{CONSTANTS}{SCRIPT}{script}</script></body></html>\n"
    )


def _subtitle(runs: Sequence[RunRecord]) -> str:
    if len(runs) > 1:
        return "Compared step by step; each run keeps its colour in all figures."
    run = runs[0]
    name = run.config.get("name")
    state = "finished" if is_finished(run) else "not finished"
    prefix = f"{name}: " if isinstance(name, str) and name != run.name else ""
    return f"{prefix}step {progress(run)}, {state}. Point at a figure to read its values."
