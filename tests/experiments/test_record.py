"""Records say what their runs were, and pages are made of them or not at all."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path

import pytest

from experiments import index, pages, record, run
from experiments.card import LoadedCard, load_card
from experiments.judge import Finding, Verdict
from moe_jax.cli import run_command
from moe_jax.config.errors import UserError
from moe_jax.sweeps.folder import SweepFolder

CARD = load_card("loss_free")
POINTS = CARD.points(CARD.scale("tiny"))


def with_band(band: float) -> LoadedCard:
    """The card with another band of its first test."""
    first, *others = CARD.claims
    test = dataclasses.replace(first.tests[0], band=band)
    return dataclasses.replace(CARD, claims=(dataclasses.replace(first, tests=(test,)), *others))


def finished(out: Path, diverged: str = "", gits: int = 1) -> SweepFolder:
    """A folder whose runs ended, one of them without a finite loss, at several commits, of which
    the first alone was clean."""
    folder = SweepFolder(out)
    folder.prepare(POINTS, CARD.registration("tiny"))
    for number, point in enumerate(POINTS):
        workdir = folder.point_folder(point)
        value = 0.1 + 0.01 * number if point.arm.startswith("loss-free") else 1.2 + 0.03 * number
        line = {
            "step": point.experiment.steps,
            "split": "eval",
            "bits_per_byte": None if point.name == diverged else 2 + 0.01 * number,
            "moe/max_violation": value,
        }
        (workdir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (workdir / "outcome.json").write_text('{"seconds": 60}\n')
        git = {"revision": f"{number % gits:040x}", "dirty": number % gits > 0}
        (workdir / "environment.json").write_text(json.dumps({"git": git}))
    return folder


def test_a_record_names_every_commit_and_whether_it_was_clean(tmp_path: Path):
    made = record.make_record(CARD, "tiny", POINTS, finished(tmp_path, gits=3))
    assert [(c["revision"][-1], c["dirty"], c["runs"]) for c in made["commits"]] == [
        ("0", False, 8),
        ("1", True, 8),
        ("2", True, 8),
    ]
    summary = record.summary(CARD, made)
    assert (
        "3 commits, 16 runs with uncommitted changes: 0000000000 (8 runs), 0000000000+" in summary
    )
    assert "6 seeds" in summary and "24 runs" in summary
    assert made["registered"] is not None


def test_a_diverged_run_stays_in_the_record(tmp_path: Path):
    name = next(point.name for point in POINTS if point.arm == "loss-free")
    made = record.make_record(CARD, "tiny", POINTS, finished(tmp_path, diverged=name))
    assert [run["bits_per_byte"] for run in made["runs"]].count(None) == 1
    judged = {j.claim.name: j for j in record.judgements(CARD, made)}
    assert judged["balance"].verdict == Verdict.HOLDS
    assert judged["balance at no cost"].verdict == Verdict.UNDECIDED
    assert judged["balance at no cost"].n == 5
    assert "no finite value of seed 20" in record.text(CARD, made)
    assert "-, 2.040" in record.text(CARD, made)
    record.save_record(CARD, made, tmp_path)  # a figure of what there is


def test_a_run_that_skipped_its_updates_is_told(tmp_path: Path):
    folder = finished(tmp_path)
    file = folder.point_folder(POINTS[0]) / "metrics.jsonl"
    train = [{"step": step, "split": "train", "loss": None} for step in (1, 2)]
    lines = [*train, {"step": 3, "split": "train", "loss": 1.0}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + file.read_text())
    made = record.make_record(CARD, "tiny", POINTS, folder)
    assert [run.get("skipped") for run in made["runs"]][:2] == [
        pytest.approx(2 / 3, abs=1e-4),
        None,
    ]
    assert "1 runs skipped more than 5% of their updates" in record.summary(CARD, made)


def test_seeds_are_counted_from_the_runs_that_are_there():
    kept = record.records(CARD)[0]
    assert "6 seeds" in record.summary(CARD, kept)
    fewer = copy.deepcopy(kept)
    gone = next(run for run in fewer["runs"] if run["arm"] == "loss-free")
    fewer["runs"].remove(gone)
    assert "5 to 6 of 6 seeds" in record.summary(CARD, fewer)
    balance = record.judgements(CARD, fewer)[0]
    assert balance.verdict == Verdict.UNDECIDED and balance.n == 5
    fewer["runs"] = [run for run in fewer["runs"] if run["seed"] % 1000 != gone["seed"]]
    assert "5 to 5 of 6 seeds" in record.summary(CARD, fewer)
    assert record.judgements(CARD, fewer)[0].verdict == Verdict.UNDECIDED


WHERE = "at 3.5M parameters, 1.2M tokens of the planted corpus"


def test_a_null_arm_says_what_it_must_be():
    test = CARD.claims[0].tests[0]
    for gains, summary in (
        ((0.01, -0.02, 0.005), r"1.00x \[.*\], as it must be"),
        ((0.5, 0.51, 0.49), "not 0, as one such interval in twenty"),
        ((), "no pairs of runs"),
    ):
        assert re.search(summary, record.null_gain(Finding(test, gains, ())))
    assert "lost" in record.null_gain(Finding(test, (0.1, 0.2), ("one run is lost",)))


def test_every_verdict_is_shown_with_its_n():
    kept = record.records(CARD)[0]
    lines = [line for line in record.text(CARD, kept).splitlines() if line.startswith("- **")]
    assert len(lines) == 3 and all("(n = 6)" in line for line in lines)
    results, overview = pages.results([CARD]), pages.overview([CARD])
    rows = [line for line in results.splitlines() if line.startswith("| [")]
    assert all(f"** {WHERE} (n = 6) |" in row for row in rows)
    assert f"tiny: {WHERE.removeprefix('at ')})" in overview
    assert overview.count("(n = 6)") == 3
    assert "all 3 claims" in overview and "all 3 claims" in results


def test_verdicts_are_by_the_bands_that_stood_before_the_runs():
    kept = record.records(CARD)[0]
    for band in (0.0, 9.0):
        changed = with_band(band)
        assert record.judgements(changed, kept)[0].verdict == Verdict.HOLDS
        with pytest.raises(UserError, match=rf"balance.tests.0.band: 1.6\d+ -> {band}"):
            pages.require_registered([changed])
    pages.require_registered([CARD])


def test_a_folder_refuses_claims_that_came_after_its_runs(tmp_path: Path):
    folder = finished(tmp_path)
    folder.prepare(POINTS, CARD.registration("tiny"))
    with pytest.raises(UserError, match=r"claims.balance.tests.0.band: 1.6\d+ -> 0.1"):
        folder.prepare(POINTS, with_band(0.1).registration("tiny"))
    later = dataclasses.replace(CARD, card=dataclasses.replace(CARD.card, first_seed=30))
    with pytest.raises(UserError, match="seeds"):
        folder.prepare(later.points(later.scale("tiny")), later.registration("tiny"))
    made = record.make_record(with_band(0.1), "tiny", POINTS, folder)
    assert made["claims"] == CARD.registration("tiny")["claims"]


def test_the_door_tells_verdicts_of_runs_that_ended(tmp_path: Path, capsys):
    out = tmp_path / "x[/red]"
    name = next(point.name for point in POINTS if point.arm == "loss-free")
    finished(out, diverged=name)

    def cli(card: LoadedCard) -> int:
        argv = [f"--out={out}", "--scale=tiny"]
        return run_command(lambda _: run.main(_, card), usage="", flags=run.FLAGS, argv=argv)

    assert cli(CARD) == 0
    summary = capsys.readouterr().out
    assert f"**balance: holds** {WHERE} (n = 6)" in summary
    assert f"**balance at no cost: undecided** {WHERE} (n = 5)" in summary
    assert f"wrote {out}/results_tiny.json" in summary
    assert cli(with_band(0.1)) == 2
    assert "claims.balance.tests.0.band" in capsys.readouterr().err


BROKEN = {
    "no end": f"a\n{pages.BEGIN}b\nc\n",
    "no begin": f"a\nb\n{pages.END}c\n",
    "the wrong way round": f"a\n{pages.END}b\n{pages.BEGIN}c\n",
    "two ends": f"a\n{pages.BEGIN}b\n{pages.END}c\n{pages.END}",
    "two begins": f"a\n{pages.BEGIN}{pages.BEGIN}b\n{pages.END}c\n",
    "a broken end": f"a\n{pages.BEGIN}b\n<!-- /resul -->\nc\n",
}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=name, marks=() if name == "two ends" else pytest.mark.grid)
        for name, text in BROKEN.items()
    ],
)
def test_pages_without_two_intact_marks_are_left_alone(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    readme, results = tmp_path / "README.md", tmp_path / "results.md"
    readme.write_text(text)
    monkeypatch.setattr(pages, "README", readme)
    monkeypatch.setattr(pages, "RESULTS", results)
    assert run_command(index.main, usage="", flags=index.FLAGS, argv=[]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert readme.read_text() == text and not results.exists()


def test_what_stands_outside_of_the_marks_stays(tmp_path: Path):
    file = tmp_path / "README.md"
    file.write_text(f"a\n{pages.BEGIN}b\n{pages.END}c\n")
    assert pages.between(file, "new\n") == f"a\n{pages.BEGIN}new\n{pages.END}c\n"


@pytest.mark.parametrize(
    ("text", "summary"), [("{", "is no JSON"), ('{"card": "x"}', "lacks scale")]
)
def test_what_is_no_record_is_told(tmp_path: Path, text: str, summary: str):
    file = tmp_path / "results_tiny.json"
    file.write_text(text)
    with pytest.raises(UserError, match=summary):
        record.read_record(file)
