"""Writes docs/results.md, the last result into each card's README, and what holds into the
project's, from the committed tables.

python -m experiments.index [--check]     (--check: only say whether they are up to date)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from experiments.card import LoadedCard, load_card, names
from experiments.judge import Verdict
from experiments.record import figure, gain, judgements, records, text, told
from moe_jax.config.cli import Arguments, door_flags, run_door

ROOT = Path(__file__).parents[1]
RESULTS, README = ROOT / "docs/results.md", ROOT / "README.md"
FIRST = "first_registration.json"
BEGIN, END = "<!-- result -->\n", "<!-- /result -->\n"
HEAD = """# Results

What papers say about mixtures of experts, tested with this framework;
`python -m experiments.index` writes this page from the tables beside the cards. Every claim, its
band, its seeds and its budget of tokens were committed before its runs. A claim **holds** where the
95 % interval of the gain over paired seeds (the wider of Student's and a bootstrap's) lies above
its band, **does not hold** where it lies below, and is **undecided** in between. *Null* is the same
test between runs of one arm that differ in nothing but their seeds: it must not say that a claim
holds. "Does not hold" is about these sizes.

| card | claim | published | ours | verdict | null |
| --- | --- | --- | --- | --- | --- |
"""

FLAGS = door_flags()
flags.DEFINE_boolean("check", False, "write nothing; exit code 1 if stale", flag_values=FLAGS)


def main(arguments: Arguments) -> int:
    stale = []
    for file, content in pages():
        if not file.is_file() or file.read_text("utf-8") != content:
            stale.append(file)
            if not FLAGS.check:
                file.write_text(content, "utf-8")
    for file in stale:
        print(f"{'stale' if FLAGS.check else 'wrote'}: {file.relative_to(ROOT)}")
    return 1 if FLAGS.check and stale else 0


def pages() -> Iterator[tuple[Path, str]]:
    """Every file that is made from the tables, with its content."""
    cards = [load_card(name) for name in names()]
    yield RESULTS, results(cards)
    yield README, between(README.read_text("utf-8"), overview(cards))
    for card in cards:
        readme = card.folder / "README.md"
        yield readme, with_result(readme.read_text("utf-8"), card)
        for record in records(card):
            yield card.folder / f"figure_{record['scale']}.svg", figure(card, record)


def results(cards: list[LoadedCard]) -> str:
    rows, runs = [], []
    for card in cards:
        link = f"[{card.card.title}](../experiments/{card.name}/README.md)"
        for record in records(card):
            runs.append(f"* {link}: {told(card, record)}")
            for judgement in judgements(card, record):
                cells = (
                    f"{link} ({record['scale']})",
                    judgement.claim.text,
                    f"{judgement.claim.published} ({judgement.claim.source})",
                    "; ".join(map(gain, judgement.findings)),
                    f"**{judgement.verdict}**",
                    judgement.null_verdict,
                )
                rows.append("| " + " | ".join(cells) + " |\n")
        if (card.folder / FIRST).is_file():
            first = f"[its first record](../experiments/{card.name}/{FIRST})"
            runs.append(f"* {link}: registered twice; {first} is told in its README.")
        if not records(card):
            rows += [
                f"| {link} | {claim.text} | {claim.published} ({claim.source}) | | not run | |\n"
                for claim in card.claims
            ]
    return HEAD + "".join(rows) + "".join(f"\n{line}" for line in runs) + "\n"


def overview(cards: list[LoadedCard]) -> str:
    """The names of the claims by their verdict, a row a card and scale."""
    lines = [f"| card | {' | '.join(Verdict)} |", "| --- " * (1 + len(Verdict)) + "|"]
    for card in cards:
        for record in records(card):
            judged = judgements(card, record)
            cells = [
                "; ".join(j.claim.name for j in judged if j.verdict == verdict)
                for verdict in Verdict
            ]
            link = f"[{card.card.title}](experiments/{card.name}/README.md)"
            lines.append(f"| {link} ({record['scale']}) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_result(readme: str, card: LoadedCard) -> str:
    """The README with the card's records between its marks."""
    shown = [
        f"{text(card, record)}\n\n![{card.card.title}](figure_{record['scale']}.svg)\n"
        for record in records(card)
    ]
    return between(readme, "\n".join(shown) or "Not run yet.\n")


def between(readme: str, shown: str) -> str:
    """The README with something else between its marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + shown + END + after


if __name__ == "__main__":
    sys.exit(run_door(main, usage=__doc__ or "", flags=FLAGS))
