"""What a card's run leaves: a table under version control, a text, and a figure."""

from __future__ import annotations

import datetime
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.card import NULL, Claim, LoadedCard
from experiments.figures import dots
from experiments.judge import Judgement, judge, level_among
from moe_jax.config.diff import difference
from moe_jax.config.errors import UserError
from moe_jax.config.paths import write_whole
from moe_jax.data.planted import Planted
from moe_jax.sweeps.folder import SweepFolder, by_name
from moe_jax.sweeps.matching import counts_of, training_tokens
from moe_jax.sweeps.points import SweepPoint
from moe_jax.sweeps.table import MANY, seconds_of

Record = Mapping[str, Any]
DIGITS = 6


def make_record(
    card: LoadedCard, scale: str, points: Sequence[SweepPoint], folder: SweepFolder
) -> dict[str, Any]:
    """The runs that are done, with the claims as they stood before the first of them, and where
    and when it was. A metric that a run has no finite value of is None: the run diverged. skipped:
    the share of its updates that a run skipped, where it did."""
    rows = [row for row in folder.rows(points) if row.done]
    kept = metrics_of(card)
    environments = [environment(folder.point_folder(row.point)) for row in rows]
    seconds = [seconds_of(folder.point_folder(row.point)) or 0.0 for row in rows]
    devices = [environment.get("devices") for environment in environments]
    known = folder.question()
    asked = known["asked"] if known else card.registration(scale)
    return {
        "card": card.name,
        "scale": scale,
        "claims": asked["claims"],
        "seeds": asked["seeds"],
        "registered": known["git"] if known else None,
        "tokens": training_tokens(points[0].experiment),
        **sizes(points),
        "date": datetime.date.today().isoformat(),
        "commits": commits(environment.get("git") for environment in environments),
        "devices": next(iter(devices), None),
        "minutes": round(sum(seconds) / 60, 1),
        "runs": [
            {
                "arm": row.point.arm,
                "seed": row.point.seed,
                **{name: _rounded(row.value(name)) for name in kept},
                **({"skipped": _rounded(row.skipped)} if row.skipped else {}),
            }
            for row in rows
        ],
    }


def sizes(points: Sequence[SweepPoint]) -> dict[str, Any]:
    """The fewest and most parameters of an arm, and the text that they learn."""
    parameters = [counts_of(point.experiment).total for point in points]
    kind = points[0].experiment.data.kind_name
    return {"parameters": [min(parameters), max(parameters)], "corpus": kind}


def setting(card: LoadedCard, record: Record) -> str:
    """ "3.5M parameters, 1.2M tokens of the planted corpus": a verdict is about these. An older
    record does not say it, its card does."""
    known = record
    if "parameters" not in record:
        arms = {point.arm: point for point in card.points(card.scale(record["scale"]))}
        known = sizes(list(arms.values()))
    few, many = (f"{count / 1e6:.1f}M" for count in known["parameters"])
    size = few if few == many else f"{few} to {many}"
    data = "the planted corpus" if known["corpus"] == Planted.kind_name else known["corpus"]
    return f"{size} parameters, {record['tokens'] / 1e6:.1f}M tokens of {data}"


def commits(found: Iterable[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Every commit that runs were made at, whether it was clean, and of how many runs."""
    counted = Counter(
        (git.get("revision"), bool(git.get("dirty"))) if git else (None, True) for git in found
    )
    return [{"revision": a, "dirty": b, "runs": n} for (a, b), n in counted.items()]


def metrics_of(card: LoadedCard) -> list[str]:
    """What its claims and its tables need."""
    tests = [test for claim in card.claims for test in claim.tests]
    judged = [name for test in tests for name in (test.metric, test.of_baseline)]
    return list(dict.fromkeys([*judged, *card.card.shown]))


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def environment(folder: Path) -> dict[str, Any]:
    """What a run wrote of where it was made; {} where there is none."""
    file = folder / "environment.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


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
    return [read_record(file) for file in files if file.is_file()]


def read_record(file: Path) -> dict[str, Any]:
    """UserError where it is torn or lacks what every record has."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: is no JSON ({error})") from error
    needed = ("card", "scale", "claims", "seeds", "runs", "tokens", "minutes", "date")
    if absent := [name for name in needed if name not in found]:
        raise UserError(f"{file}: is no record of a card; it lacks {', '.join(absent)}")
    return found


def judgements(card: LoadedCard, record: Record) -> list[Judgement]:
    """By the claims, bands and seeds that the record was registered with, whatever became of them
    in verdict.py since."""
    claims = [Claim.from_json(tree) for tree in record["claims"]]
    return [judge(claim, record["runs"], asked_seeds(card, record)) for claim in claims]


def asked_seeds(card: LoadedCard, record: Record) -> list[int]:
    """The seeds that each arm was to have; an older record says only how many."""
    asked = record["seeds"]
    first = card.card.first_seed
    return list(range(first, first + asked)) if isinstance(asked, int) else asked


def figure(card: LoadedCard, record: Record) -> str:
    """The card's own picture, or its first metric with a row an arm."""
    if card.card.figure is not None:
        return card.card.figure(record["runs"])
    return dots(record["runs"], card.card.shown[0], f"{card.card.title}, {record['scale']}")


# Text


def text(card: LoadedCard, record: Record) -> str:
    """Arms and claims in Markdown: what a README shows of the last run."""
    judged, where = judgements(card, record), setting(card, record)
    lines = [summary(card, record), "", *arms_table(card, record), ""]
    for judgement in judged:
        claim = judgement.claim
        lines += [
            f"- **{claim.name}: {judgement.verdict}** at {where} (n = {judgement.n}). {claim.text}"
        ]
        for finding, null in zip(judgement.findings, judgement.null, strict=True):
            lines.append(f"  {gain(finding)}; other seeds alone: {null_gain(null)}.")
    if len(judged) > 1:
        lines += ["", among(judged, "this page")]
    return "\n".join(lines)


def among(judged: Sequence[Judgement], where: str) -> str:
    """What is left where one asks that all claims of a page be right together."""
    count = len(judged)
    lost = [j.claim.name for j in judged if j.among(count) != j.verdict]
    return (
        f"Each verdict is one of {count} on {where}. With Bonferroni's level for all of them "
        f"({100 * level_among(count):.2f} % intervals) "
        + (f"these are undecided: {'; '.join(lost)}." if lost else "each stays as it is.")
    )


def summary(card: LoadedCard, record: Record) -> str:
    skipping = sum(run.get("skipped", 0.0) > MANY for run in record["runs"])
    return (
        f"Scale {record['scale']}, {record['date']}, {commits_text(record)}: "
        f"{seeds_text(card, record)}, {record['tokens'] / 1e6:.1f}M tokens a run, "
        f"{len(record['runs'])} runs in {record['minutes']:.0f} minutes (of one run at a time)."
        + (f" {skipping} runs skipped more than {MANY:.0%} of their updates." if skipping else "")
    )


def commits_text(record: Record) -> str:
    """Each commit, with a + where there were uncommitted changes. Older records kept that of their
    first run alone."""
    if "commits" not in record:
        return f"first run at commit {_commit(record.get('git') or {})}"
    found = record["commits"]
    if len(found) == 1:
        return f"commit {_commit(found[0])}"
    each = ", ".join(f"{_commit(one)} ({one['runs']} runs)" for one in found)
    dirty = sum(one["runs"] for one in found if one["dirty"])
    return f"{len(found)} commits, {dirty} runs with uncommitted changes: {each}"


def _commit(git: Mapping[str, Any]) -> str:
    return (git.get("revision") or "?")[:10] + ("+" if git.get("dirty") else "")


def seeds_text(card: LoadedCard, record: Record) -> str:
    """How many seeds the arms really have, and how many were asked for where that is more."""
    asked = len(asked_seeds(card, record))
    counts = Counter(run["arm"] for run in record["runs"])
    tests = [test for claim in record["claims"] for test in claim["tests"]]
    needed = {name for t in tests for name in (t["treatment"], t["baseline"], NULL + t["baseline"])}
    found = sorted({counts[arm] for arm in needed | counts.keys()})
    if found == [asked]:
        return f"{asked} seeds"
    return f"{found[0]} to {found[-1]} of {asked} seeds"


def arms_table(card: LoadedCard, record: Record) -> list[str]:
    """Each arm's runs, seed by seed, or once where all seeds are the same: arms by metrics, or the
    other way round where that is less wide."""
    runs = record["runs"]
    names = [n for n in metrics_of(card) if any(run.get(n) is not None for run in runs)]
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
    """ "gain 0.021 [0.015, 0.027], 0.02 asked, n = 4", and what speaks against it."""
    test, interval = finding.test, finding.gain
    show = _ratio if test.unit == "log ratio" else _difference
    why = "".join(f"; {problem}" for problem in finding.problems)
    if interval.n == 0:
        return f"{test.metric}: no pairs of runs{why}"
    return (
        f"{test.metric}: gain {show(interval.mean)} [{show(interval.low)}, {show(interval.high)}], "
        f"{show(test.band)} asked, n = {interval.n}{why}"
    )


def null_gain(finding: Any) -> str:
    """ "+0.0010 [-0.0012, +0.0032], as it must be": of an arm against itself with other seeds,
    which differ by chance alone."""
    test, interval = finding.test, finding.gain
    show = _ratio if test.unit == "log ratio" else _difference
    if interval.n == 0:
        return "no pairs of runs"
    summary = f"{show(interval.mean)} [{show(interval.low)}, {show(interval.high)}]"
    if finding.problems:
        return f"{summary}; {'; '.join(finding.problems)}"
    if interval.low <= 0 <= interval.high:
        return f"{summary}, as it must be"
    return f"{summary}, not 0, as one such interval in twenty is by chance"


def _ratio(value: float) -> str:
    return f"{math.exp(value):.2f}x" if abs(value) < 700 else "?"  # e^709 is the largest float


def _difference(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else "?"


def changed_claims(card: LoadedCard, record: Record) -> list[str]:
    """What verdict.py asks otherwise than the record was registered for, a line each."""
    now = card.registration(record["scale"])["claims"]
    return difference(by_name(record["claims"]), by_name(now))
