"""What a card's run leaves: a table under version control, a text, and a figure."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.card import NULL, LoadedCard
from experiments.figures import dots
from experiments.judge import Judgement, judge
from moe_jax.config.paths import write_whole
from moe_jax.sweeps.folder import SweepFolder
from moe_jax.sweeps.matching import training_tokens
from moe_jax.sweeps.points import SweepPoint
from moe_jax.sweeps.table import seconds_of

Record = Mapping[str, Any]
DIGITS = 6


def make_record(
    card: LoadedCard, scale: str, points: Sequence[SweepPoint], folder: SweepFolder
) -> dict[str, Any]:
    """The runs that are done, with the claims as they stood, and where and when it was."""
    rows = [row for row in folder.rows(points) if row.done]
    kept = metrics_of(card)
    environment = _environment(folder.point_folder(rows[0].point)) if rows else {}
    seconds = [seconds_of(folder.point_folder(row.point)) or 0.0 for row in rows]
    return {
        "card": card.name,
        "scale": scale,
        "claims": [asdict(claim) for claim in card.claims],
        "seeds": card.scale(scale).seeds,
        "tokens": training_tokens(points[0].experiment),
        "date": datetime.date.today().isoformat(),
        "git": environment.get("git"),
        "devices": environment.get("devices"),
        "minutes": round(sum(seconds) / 60, 1),
        "runs": [
            {
                "arm": row.point.arm,
                "seed": row.point.seed,
                **{name: _rounded(row.value(name)) for name in kept if not _missing(row, name)},
            }
            for row in rows
        ],
    }


def metrics_of(card: LoadedCard) -> list[str]:
    """What its claims and its tables need."""
    tests = [test for claim in card.claims for test in claim.tests]
    judged = [name for test in tests for name in (test.metric, test.of_baseline)]
    return list(dict.fromkeys([*judged, *card.card.shown]))


def _missing(row: Any, name: str) -> bool:
    return not math.isfinite(row.value(name))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _environment(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "environment.json").read_text("utf-8"))


def record_file(folder: Path, scale: str) -> Path:
    return folder / f"results_{scale}.json"


def save_record(card: LoadedCard, record: Record, folder: str | Path) -> list[Path]:
    """results_SCALE.json, figure_SCALE.svg, and, in the card's own folder, the README's result."""
    folder = Path(folder)
    file = record_file(folder, record["scale"])
    picture = folder / f"figure_{record['scale']}.svg"
    write_whole(file, json.dumps(record, indent=1) + "\n")
    write_whole(picture, figure(card, record))
    return [file, picture]


def records(card: LoadedCard) -> list[dict[str, Any]]:
    """What is kept in the card's folder, a record a scale."""
    files = [record_file(card.folder, scale) for scale in card.card.scales]
    return [json.loads(file.read_text("utf-8")) for file in files if file.is_file()]


def judgements(card: LoadedCard, record: Record) -> list[Judgement]:
    return [judge(claim, record["runs"]) for claim in card.claims]


def figure(card: LoadedCard, record: Record) -> str:
    """The card's own picture, or its first metric with a row an arm."""
    if card.card.figure is not None:
        return card.card.figure(record["runs"])
    return dots(record["runs"], card.card.shown[0], f"{card.card.title}, {record['scale']}")


# Text


def text(card: LoadedCard, record: Record) -> str:
    """Arms and claims in Markdown: what a README shows of the last run."""
    lines = [told(card, record), "", *arms_table(card, record), ""]
    for judgement in judgements(card, record):
        lines += [f"- **{judgement.claim.name}: {judgement.verdict}.** {judgement.claim.text}"]
        for finding, null in zip(judgement.findings, judgement.null, strict=True):
            lines.append(f"  {gain(finding)}; with other seeds for another arm {gain(null)}.")
    return "\n".join(lines)


def told(card: LoadedCard, record: Record) -> str:
    git = record.get("git") or {}
    commit = (git.get("revision") or "?")[:10] + ("+" if git.get("dirty") else "")
    return (
        f"Scale {record['scale']}, {record['date']}, commit {commit}: {record['seeds']} seeds, "
        f"{record['tokens'] / 1e6:.1f}M tokens a run, {len(record['runs'])} runs in "
        f"{record['minutes']:.0f} minutes (of one run at a time)."
    )


def arms_table(card: LoadedCard, record: Record) -> list[str]:
    """Each arm's runs, seed by seed, or once where all seeds are the same: arms by metrics, or the
    other way round where that is less wide."""
    names = [name for name in metrics_of(card) if any(name in run for run in record["runs"])]
    arms = dict.fromkeys(run["arm"] for run in record["runs"])
    ordered = sorted(arms, key=lambda arm: arm.startswith(NULL))
    cells = {
        (arm, name): _cell([run.get(name) for run in record["runs"] if run["arm"] == arm])
        for arm in ordered
        for name in names
    }
    if len(names) > 2 * len(ordered):
        rows = [[name, *(cells[arm, name] for arm in ordered)] for name in names]
        head = ["metric", *ordered]
    else:
        rows = [[arm, *(cells[arm, name] for name in names)] for arm in ordered]
        head = ["arm", *names]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _cell(values: Sequence[float | None]) -> str:
    return ", ".join(map(number, values[:1] if len(set(values)) == 1 else values))


def number(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 1 else f"{value:.4g}"


def gain(finding: Any) -> str:
    """ "gain 0.021 [0.015, 0.027], more than 0.02 asked, 4 seeds"."""
    test, interval = finding.test, finding.gain
    show = _ratio if test.unit == "log ratio" else _difference
    if interval.n == 0:
        return f"{test.metric}: no runs"
    return (
        f"{test.metric}: gain {show(interval.mean)} [{show(interval.low)}, {show(interval.high)}], "
        f"{show(test.band)} asked"
    )


def _ratio(value: float) -> str:
    return f"{math.exp(value):.2f}x" if math.isfinite(value) else "?"


def _difference(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else "?"


def same_claims(card: LoadedCard, record: Record) -> bool:
    """Whether the claims are still those that the record was made for."""
    now = json.loads(json.dumps([asdict(claim) for claim in card.claims]))
    return now == record["claims"]
