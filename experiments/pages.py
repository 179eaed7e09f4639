"""The pages that experiments.index writes: docs/results.md, and parts of READMEs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.card import LoadedCard, load_card, names
from experiments.judge import Judgement, Verdict, level_among
from experiments.record import (
    changed_claims,
    figure,
    gain,
    judgements,
    null_gain,
    records,
    setting,
    summary,
    text,
)
from moe_jax.cli import Arguments
from moe_jax.config.errors import UserError
from moe_jax.config.paths import write_whole

ROOT = Path(__file__).parents[1]
RESULTS, README = ROOT / "docs/results.md", ROOT / "README.md"
FIRST = "first_registration.json"
BEGIN, END = "<!-- result -->\n", "<!-- /result -->\n"
HEAD = """# Results

What papers say about mixtures of experts, tested with this framework;
`python -m experiments.index` writes this page from the tables beside the cards. Every claim, its
band, its seeds and its budget of tokens were committed before its runs.

A claim **holds** where the 95 % interval of the gain over paired seeds (the wider of Student's and
a bootstrap's) lies above its band, **does not hold** where it lies below, and is **undecided** in
between, and wherever a registered run is missing or diverged. n is the number of paired seeds. *Of
{count}* is the verdict where one asks that all {count} claims of this page be right together, by
Bonferroni's intervals of {level} %: without them, of 17 claims that are all false one holds on
more than a third of such pages. *Null* is the same test between runs of one arm that differ in
nothing but their seeds: its gain must be 0 within its interval. A verdict is about the sizes and
texts that stand beside it.

| card | claim | published | ours | verdict | of {count} | null |
| --- | --- | --- | --- | --- | --- | --- |
"""


def main(arguments: Arguments) -> int:
    flags = arguments.flags
    stale = []
    for file, content in list(pages()):  # all of them are made before the first is written
        if not file.is_file() or file.read_text("utf-8") != content:
            stale.append(file)
            if not flags.check:
                write_whole(file, content)
    for file in stale:
        print(f"{'stale' if flags.check else 'wrote'}: {file.relative_to(ROOT)}")
    return 1 if flags.check and stale else 0


def pages() -> Iterator[tuple[Path, str]]:
    """Every file that is made from the tables, with its content. UserError where a card asks for
    something else than its record was registered for, or a page has lost its marks."""
    cards = [load_card(name) for name in names()]
    require_registered(cards)
    yield RESULTS, results(cards)
    yield README, between(README, overview(cards))
    for card in cards:
        yield card.folder / "README.md", between(card.folder / "README.md", last_results(card))
        for record in records(card):
            yield card.folder / f"figure_{record['scale']}.svg", figure(card, record)


def require_registered(cards: Sequence[LoadedCard]) -> None:
    """UserError where claims or bands were changed after their runs."""
    changed = [
        f"experiments/{card.name}/verdict.py, {record['scale']}: {line}"
        for card in cards
        for record in records(card)
        for line in changed_claims(card, record)
    ]
    if changed:
        raise UserError(
            "\n  ".join(
                [
                    "claims differ from those that stood before their runs (then -> now):",
                    *changed,
                    "Take them back, or register the card anew, with other seeds.",
                ]
            )
        )


def all_judged(cards: Sequence[LoadedCard]) -> list[Judgement]:
    return [j for card in cards for record in records(card) for j in judgements(card, record)]


def results(cards: list[LoadedCard]) -> str:
    rows, runs = [], []
    judged = all_judged(cards)
    for card in cards:
        link = f"[{card.card.title}](../experiments/{card.name}/README.md)"
        for record in records(card):
            where = setting(card, record)
            runs.append(f"* {link}: {summary(card, record)}")
            for judgement in judgements(card, record):
                cells = (
                    f"{link} ({record['scale']})",
                    judgement.claim.text,
                    f"{judgement.claim.published} ({judgement.claim.source})",
                    "; ".join(map(gain, judgement.findings)),
                    f"**{judgement.verdict}** at {where} (n = {judgement.n})",
                    judgement.among(len(judged)),
                    "; ".join(map(null_gain, judgement.null)),
                )
                rows.append("| " + " | ".join(cells) + " |\n")
        if (card.folder / FIRST).is_file():
            first = f"[its first record](../experiments/{card.name}/{FIRST})"
            runs.append(f"* {link}: registered twice; {first} is told in its README.")
        if not records(card):
            rows += [
                f"| {link} | {claim.text} | {claim.published} ({claim.source}) | | not run | | |\n"
                for claim in card.claims
            ]
    head = HEAD.format(count=len(judged), level=f"{100 * level_among(len(judged)):.2f}")
    return head + "".join(rows) + "".join(f"\n{line}" for line in runs) + "\n"


def overview(cards: list[LoadedCard]) -> str:
    """The names of the claims by their verdict, a row a card and scale."""
    lines = [f"| card | {' | '.join(Verdict)} |", "| --- " * (1 + len(Verdict)) + "|"]
    judged = all_judged(cards)
    for card in cards:
        for record in records(card):
            own = judgements(card, record)
            cells = [
                "; ".join(_short(j, len(judged)) for j in own if j.verdict == verdict)
                for verdict in Verdict
            ]
            link = f"[{card.card.title}](experiments/{card.name}/README.md)"
            where = setting(card, record)
            lines.append(f"| {link} ({record['scale']}: {where}) | {' | '.join(cells)} |")
    lines += [
        "",
        f"n: paired seeds. \\*: undecided at the level that is corrected for all {len(judged)} "
        f"claims ({100 * level_among(len(judged)):.2f} % intervals).",
    ]
    return "\n".join(lines) + "\n"


def _short(judgement: Judgement, claims: int) -> str:
    alone = "" if judgement.among(claims) == judgement.verdict else "\\*"
    return f"{judgement.claim.name} (n = {judgement.n}){alone}"


def last_results(card: LoadedCard) -> str:
    """The card's records, for its README."""
    shown = [
        f"{text(card, record)}\n\n![{card.card.title}](figure_{record['scale']}.svg)\n"
        for record in records(card)
    ]
    return "\n".join(shown) or "Not run yet.\n"


def between(file: Path, shown: str, begin: str = BEGIN, end: str = END) -> str:
    """The file's text with something else between its marks. UserError unless it has each of the
    two lines once, and in order: what stands outside of them is somebody's."""
    found = file.read_text("utf-8")
    if not (found.count(begin) == found.count(end) == 1 and found.index(begin) < found.index(end)):
        raise UserError(
            f"{file}: needs the line {begin.strip()} once and, below it, {end.strip()} once; "
            "nothing was written"
        )
    before, _, rest = found.partition(begin)
    return before + begin + shown + end + rest.partition(end)[2]
