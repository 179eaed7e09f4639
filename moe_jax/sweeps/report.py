"""The report of a sweep: one HTML file that loads nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from moe_jax.analysis.read_run import Series, read_runs
from moe_jax.analysis.report.frame import figure, key, legend, run_colour
from moe_jax.analysis.report.line_chart import Line, line_chart
from moe_jax.analysis.report.numbers import formatted
from moe_jax.analysis.report.page import document, write_page
from moe_jax.analysis.report.sections import Section
from moe_jax.analysis.report.tables import table
from moe_jax.config.errors import UserError
from moe_jax.sweeps.charts import Dot, heat_table, numeric, parallel, scatter, shade
from moe_jax.sweeps.engine import last_words
from moe_jax.sweeps.points import short_names
from moe_jax.sweeps.space import SEED
from moe_jax.sweeps.statistics import Interval
from moe_jax.sweeps.table import Arm, Row, best_arm, higher_is_better

BESIDE = ("moe/max_violation", "moe/dropped_fraction")  # further axes of parallel coordinates
MAX_PAIRS, MAX_CURVES, MAX_COLOURS, MAX_ARMS = 6, 60, 8, 30
MAX_VALUES, BINS = 10, 5  # of a setting in a heat map; more numbers than these are put into bins

STYLE = """
.mean { stroke: var(--c); stroke-width: 13; stroke-linecap: square; opacity: .45; }
.spread { stroke: var(--c); stroke-width: 2.5; opacity: .6; }
.lines .dots, .lines .mean { fill: none; vector-effect: non-scaling-stroke; }
.lines .mean { stroke-width: 13; } .lines .dots { stroke-width: 8; }
.strand { stroke: var(--c); stroke-width: 1.8; opacity: .75; }
.strand:hover, .lines path.dots:hover { stroke-width: 4; opacity: 1; }
main a { color: var(--accent); }
figure > .parallel, figure > .scroll { grid-row: 3; align-self: start; }
.parallel { overflow-x: auto; overflow-y: hidden; height: 360px; padding: 34px 8px 14px; }
.strands { position: relative; height: 300px; min-width: 560px; margin: 0 96px 0 8px; }
.strands svg { width: 100%; height: 100%; border: 0; overflow: visible; }
.axis { position: absolute; top: 0; bottom: 0; font-size: 11px; color: var(--muted); }
.axis b { position: absolute; top: -26px; transform: translateX(-10%); white-space: nowrap;
  color: var(--text); font-weight: 600; }
.axis span { position: absolute; left: 6px; transform: translateY(-50%); white-space: nowrap;
  background: color-mix(in srgb, var(--card) 82%, transparent); padding: 0 3px; }
table.heat-table { width: auto; } .heat-table td { text-align: center; min-width: 62px;
  font-variant-numeric: tabular-nums; border: 2px solid var(--card); }
.heat-table .corner { color: var(--muted); font-weight: 500; font-size: 12px; }
.heat-table thead th { text-align: center; }
.heat-table .empty { color: var(--muted); background: repeating-linear-gradient(45deg,
  transparent 0 6px, var(--grid) 6px 8px); }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 8px 12px; font-size: 12px; }
.best td, .best th { font-weight: 700; }
"""
SCRIPT = """
for (const path of document.querySelectorAll("[data-tip]")) {
  path.querySelector("title")?.remove();
  path.addEventListener("pointermove", event => {
    tip.replaceChildren();
    path.dataset.tip.split("; ").forEach((line, n) => say(tip, n ? "div" : "b", line));
    place(event);
  });
  path.addEventListener("pointerleave", () => { tip.style.display = "none"; });
}
"""


def write_report(
    folder: Path,
    rows: Sequence[Row],
    arms: Sequence[Arm],
    metric: str,
    importance: Mapping[str, float] | None = None,
) -> Path:
    """Writes DIR/report.html and returns it."""
    html = build_report(folder, rows, arms, metric, importance)
    return write_page(html, folder / "report.html")


def build_report(
    folder: Path,
    rows: Sequence[Row],
    arms: Sequence[Arm],
    metric: str,
    importance: Mapping[str, float] | None = None,
) -> str:
    """The page on the rows of a sweep; arms: `arms_of` them, by the same metric; importance: of
    the settings of a search."""
    swept = _Swept.of(folder, rows, arms, metric)
    parts = (
        Section("arms", "Arms", _arms(swept)),
        Section("cost", "Against cost", _cost(swept)),
        Section("parallel", "All settings", _parallel(swept, importance or {})),
        Section("pairs", "Two settings", _pairs(swept)),
        Section("curves", "Learning", _curves(swept)),
        Section("runs", "Runs", _runs(swept)),
    )
    done = sum(row.done for row in rows)
    values = "; ".join(
        f"{swept.names[path]}: {', '.join(dict.fromkeys(str(v) for v in values))}"
        for path, values in swept.values.items()
        if len(set(map(str, values))) <= 8
    )
    subtitle = f"{done} of {len(rows)} runs are done. {values}"
    shown = [part for part in parts if part.html]
    return document(folder.name or "sweep", subtitle, shown, style=STYLE, script=SCRIPT)


@dataclass(frozen=True)
class _Swept:
    """A sweep as the sections see it. paths: the settings that vary, but for the seed; names: their
    short ones; values: of each path, in order of appearance."""

    folder: Path
    rows: Sequence[Row]
    arms: Sequence[Arm]
    metric: str
    paths: Sequence[str]
    names: Mapping[str, str]
    values: Mapping[str, list[object]]

    @classmethod
    def of(cls, folder: Path, rows: Sequence[Row], arms: Sequence[Arm], metric: str) -> _Swept:
        paths = list(dict.fromkeys(path for row in rows for path in row.point.overrides))
        values = {
            path: list(dict.fromkeys(row.point.overrides.get(path) for row in rows))
            for path in paths
        }
        varied = [path for path in paths if path != SEED and len(values[path]) > 1]
        return cls(folder, rows, arms, metric, varied, short_names(dict.fromkeys(paths)), values)

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if math.isfinite(row.value(self.metric))]

    @property
    def lower(self) -> bool:
        """Whether less of the metric is better."""
        return not higher_is_better(self.metric)

    def colour(self, arm: Arm) -> str:
        return run_colour(self.arms.index(arm))

    def colour_of(self, row: Row) -> str:
        return run_colour(
            next(n for n, arm in enumerate(self.arms) if any(own is row for own in arm.rows))
        )


def _arms(swept: _Swept) -> str:
    sign = 1 if swept.lower else -1
    best = best_arm(swept.arms, swept.metric)
    lines, shown, note = [], list(enumerate(swept.arms)), ""
    if len(shown) > MAX_ARMS:
        ranked = [(n, arm) for n, arm in shown if arm.value is not None]
        shown = sorted(ranked, key=lambda pair: sign * pair[1].value.mean)[:MAX_ARMS]  # type: ignore[union-attr]
        note = f" The {len(shown)} best of {len(swept.arms)} arms, best first."
    for number, arm in shown:
        point = arm.rows[0].point
        mark = f'<span class="chip run-{number % 8}"><i></i>{escape(arm.name)}</span>'
        cells = [
            f"{arm.value.n if arm.value else 0} of {len(arm.rows)}",
            _interval(arm.value),
            _gap(arm.difference, len(arm.rows)),
            f"{point.experiment.steps:,}",
            *(formatted(arm.rows[0].costs[name]) for name in ("parameters", "active")),
            formatted(float(np.mean([row.costs["used_flops"] for row in arm.rows]))),
        ]
        warning = f"<br/><small>{escape(arm.note)}</small>" if arm.note else ""
        lines.append([(f"<b>{mark}</b>" if arm is best else mark) + warning, *cells])
    baseline = swept.arms[0].baseline
    head = ["arm", "seeds", escape(swept.metric), f"difference to {escape(baseline)}", "steps"]
    head += ["parameters", "active", "FLOPs used"]
    best_text = f" The best arm is {best.name}." if best is not None else ""
    return table(head, lines, "numbers") + (
        "<p>Means over seeds with 95 % intervals (Student); differences are taken seed by seed, "
        f"and are bold where the interval leaves out 0.{escape(best_text)}{note}</p>"
    )


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    half = (interval.high - interval.low) / 2
    return formatted(interval.mean) + (f" ± {formatted(half)}" if math.isfinite(half) else "")


def _gap(interval: Interval | None, seeds: int) -> str:
    """A difference, bold where it is one; of how many pairs where that is not all seeds."""
    if interval is None:
        return ""
    text = ("+" if interval.mean > 0 else "") + _interval(interval)
    if interval.n < seeds:
        return f"{text} ({interval.n} of {seeds} pairs)"
    return f"<b>{text}</b>" if interval.low > 0 or interval.high < 0 else text


def _cost(swept: _Swept) -> str:
    """The metric against FLOPs, or against parameters where all took the same FLOPs."""
    if not swept.finished:
        return ""
    flops = [row.costs["used_flops"] for row in swept.finished]
    same = max(flops) <= 1.02 * min(flops)
    cost, title = ("parameters", "parameters") if same else ("used_flops", "training FLOPs")
    dots = [
        Dot(row.costs[cost], row.value(swept.metric), swept.colour_of(row), _tip(swept, row))
        for row in swept.finished
    ]
    means = [
        Dot(
            float(np.mean([row.costs[cost] for row in arm.rows])),
            arm.value.mean,
            swept.colour(arm),
            f"{arm.name}; {swept.metric}: {_interval(arm.value)}",
            (arm.value.low, arm.value.high) if math.isfinite(arm.value.low) else None,
        )
        for arm in swept.arms
        if arm.value is not None
    ]
    caption = (
        "A dot a run, a square an arm's mean with its 95 % interval. The dashed line joins the "
        "arms that nothing cheaper beats."
    )
    if same:
        caption += " All runs took the same FLOPs, within 2 %."
    drawn = scatter(dots, means, x_title=title, y_title=swept.metric, lower_is_better=swept.lower)
    return figure(f"{swept.metric} against {title}", _keys(swept), drawn, caption=caption)


def _keys(swept: _Swept) -> str:
    """A legend of the arms while their colours differ."""
    if len(swept.arms) > MAX_COLOURS:
        return ""
    return legend(*(key(arm.name, run_colour(n)) for n, arm in enumerate(swept.arms)))


def _tip(swept: _Swept, row: Row) -> str:
    """What a run is and what came out, for hovering: parts with "; " between them."""
    beside = [name for name in BESIDE if name in row.metrics]
    parts = [row.point.name, f"{swept.metric}: {formatted(row.value(swept.metric))}"]
    parts += [f"{name}: {formatted(row.value(name))}" for name in beside]
    return "; ".join([*parts, f"FLOPs: {formatted(row.costs['used_flops'])}"])


def _parallel(swept: _Swept, importance: Mapping[str, float]) -> str:
    if not swept.paths or len(swept.finished) < 2:
        return ""
    measured = [swept.metric] + [
        name
        for name in BESIDE
        if len({row.value(name) for row in swept.finished}) > 1
        and all(math.isfinite(row.value(name)) for row in swept.finished)
    ]
    colour = shade([row.value(swept.metric) for row in swept.finished], swept.lower)
    order = sorted(
        swept.finished, key=lambda row: row.value(swept.metric), reverse=swept.lower
    )  # the best on top
    drawn = parallel(
        [swept.names[path] for path in swept.paths] + measured,
        [
            [_plain(row.point.overrides.get(path)) for path in swept.paths]
            + [row.value(name) for name in measured]
            for row in order
        ],
        [colour(row.value(swept.metric))[0] for row in order],
        [_tip(swept, row) for row in order],
    )
    better = "low" if swept.lower else "high"
    caption = f"A line a run, light where {swept.metric} is good ({better}), dark where not."
    if importance:
        shares = (f"{swept.names[path]} {share:.0%}" for path, share in importance.items())
        caption += f" Importance of the settings (PED-ANOVA): {', '.join(shares)}."
    return figure("A line a run", drawn, caption=caption)


def _plain(value: object) -> float | str:
    """A swept value as a key: the text and the number of it are the same."""
    number = numeric(value)
    return str(value) if number is None else number


def _pairs(swept: _Swept) -> str:
    """A heat map for each of the first pairs of settings."""
    figures: list[str] = []
    for first, second in itertools.combinations(swept.paths, 2):
        both = [row for row in swept.finished if {first, second} <= row.point.overrides.keys()]
        if not both or len(figures) == MAX_PAIRS:
            continue
        places = [
            _binned([_plain(row.point.overrides[path]) for row in both]) for path in (first, second)
        ]
        sums: dict[tuple[object, object], list[float]] = {}
        for row, *at in zip(both, *(place for place, _ in places), strict=True):
            sums.setdefault((at[0], at[1]), []).append(row.value(swept.metric))
        drawn = heat_table(
            places[0][1],
            places[1][1],
            {at: float(np.mean(values)) for at, values in sums.items()},
            row_title=swept.names[first],
            column_title=swept.names[second],
            lower_is_better=swept.lower,
        )
        title = f"{swept.names[first]} and {swept.names[second]}"
        figures.append(figure(title, drawn, caption=f"Mean {swept.metric} over everything else."))
    return f'<div class="grid large">{"".join(figures)}</div>' if figures else ""


def _binned(
    values: Sequence[float | str],
) -> tuple[Sequence[float | str], Sequence[float | str]]:
    """For each value the row of a heat map that it belongs to, and all rows in order: the values
    themselves, or of many numbers bins with about equally many of them."""
    distinct = sorted(set(values), key=lambda v: (isinstance(v, str), v))
    if len(distinct) <= MAX_VALUES or any(isinstance(v, str) for v in distinct):
        return list(values), distinct
    edges = [distinct[n * (len(distinct) - 1) // BINS] for n in range(BINS + 1)]
    labels = [f"{low:.2g} – {high:.2g}" for low, high in itertools.pairwise(edges)]
    return [labels[int(np.searchsorted(edges[1:-1], v, "right"))] for v in values], labels


def _curves(swept: _Swept) -> str:
    lines, shown = [], 0
    for number, arm in enumerate(swept.arms):
        folders = [swept.folder / "points" / row.point.name for row in arm.rows]
        series = [found for found in map(_evaluations(swept.metric), folders) if found is not None]
        if not series or shown + len(series) > MAX_CURVES:
            continue
        shown += len(series)
        colour = run_colour(number)
        lines += [Line(arm.name, found, colour, "train") for found in series]
        common = set.intersection(*(set(found.steps.tolist()) for found in series))
        steps = np.array(sorted(common))
        if len(series) > 1 and len(steps) > 1:
            mean = np.mean([f.values[np.isin(f.steps, steps)] for f in series], axis=0)
            lines.append(Line(f"{arm.name}, mean", Series(steps, mean), colour, "total"))
    if not lines or max(len(line.series.steps) for line in lines) < 2:
        return ""
    last = max(int(line.series.steps[-1]) for line in lines)
    drawn, _ = line_chart(lines, (0, last), early=True)
    runs = sum(len(arm.rows) for arm in swept.arms)
    note = "" if shown == runs else f" {shown} of {runs} runs are drawn."
    caption = f"Evaluations of each run, thin, and the mean of each arm.{note}"
    return figure(f"{swept.metric} over training", _keys(swept), drawn, caption=caption)


def _evaluations(metric: str) -> Callable[[Path], Series | None]:
    """The metric over the evaluations of the run in a folder, None where it has none."""

    def read(folder: Path) -> Series | None:
        try:
            return read_runs([folder])[0].get(metric, "eval")
        except UserError:
            return None

    return read


def _runs(swept: _Swept) -> str:
    names = [swept.metric, *(n for n in BESIDE if any(n in row.metrics for row in swept.rows))]
    lines, logs = [], []
    for row in swept.rows:
        name = row.point.name
        folder = swept.folder / "points" / name
        link = f'<a href="{escape(quote(f"points/{name}/"))}">{escape(name)}</a>'
        cells = [formatted(row.value(metric)) for metric in names]
        state = "done" if row.done else escape(row.problem or "not done")
        lines.append([link, state, *cells])
        words = [] if row.done else last_words(folder)
        if words:
            shown_words = escape("\n".join(words))
            logs.append(
                f"<details><summary>{escape(name)}</summary><pre>{shown_words}</pre></details>"
            )
    logs_text = f"<h3>Ends of the logs of what is not done</h3>{''.join(logs)}" if logs else ""
    return table(["run", "state", *map(escape, names)], lines, "numbers") + logs_text
