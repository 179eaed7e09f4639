"""The sections of --routing, on traces made by hand; and the command on a trained run."""

from __future__ import annotations

import dataclasses
import re
import shutil

import numpy as np
import pytest

from moe_jax.analysis.report import build_report
from moe_jax.analysis.report.routing import RoutingView, colour, routing_sections
from tests.analysis.drawn_trace import random_trace
from tests.analysis.fake_run import write_run
from tests.commands.conftest import texts, tiny, trained  # noqa: F401 - fixtures

LETTERS = "ab<\n "


def view(*traces) -> RoutingView:
    return RoutingView(traces, lambda token: LETTERS[token])


def html_of(one: RoutingView) -> dict[str, str]:
    return {section.id: section.html for section in routing_sections(one)}


def test_text_has_the_colour_of_its_leading_expert():
    trace = random_trace()
    trace = dataclasses.replace(trace, kept_LNSK=np.ones_like(trace.kept_LNSK))
    html = html_of(view(trace))["text"]
    first = re.search(r'<p class="text">(.*?)</p>', html, re.DOTALL)
    assert first is not None
    shown = re.sub(r"<[^>]*>", "", first[1]).replace("&lt;", "<").replace("⏎\n", "\n")
    assert shown == "".join(LETTERS[t] for t in trace.token_NS[0])
    spans = re.findall(r'background:(hsl[^"]*)" title="expert (\d+)"', first[1])
    assert spans and all(colour(int(e), 6) == c for c, e in spans)


def test_sections_follow_what_there_is_to_show():
    trace = random_trace()
    assert list(html_of(view(trace))) == ["text", "preferences", "pairs", "saturation", "drops"]
    assert "One checkpoint only" in html_of(view(trace))["saturation"]
    two = html_of(view(random_trace(3, step=1), trace))
    assert two["saturation"].count('class="line layer"') == 4  # 2 layers, all and first choices
    one_choice = random_trace(K=1)
    assert "pairs" not in html_of(view(one_choice))
    dropless = dataclasses.replace(trace, kept_LNSK=np.ones_like(trace.kept_LNSK))
    assert "Nothing was dropped" in html_of(view(dropless))["drops"]
    soft = dataclasses.replace(trace, expert_LNSK=np.full_like(trace.expert_LNSK, 7))
    assert list(html_of(view(soft))) == ["text"] and "no routes" in html_of(view(soft))["text"]


def test_load_is_of_what_was_wanted():
    """Before drops, as everywhere else; drops here fall on expert 0 alone."""
    trace = random_trace()
    kept = trace.expert_LNSK != 0
    html = html_of(view(dataclasses.replace(trace, kept_LNSK=kept)))["preferences"]
    cells = re.findall(r'class="mark"[^>]*>(\d+)</i></th><td>([\d.]+)', html)
    assert len(cells) == 2 * 6
    for number, (expert, percent) in enumerate(cells):
        ids = trace.expert_LNSK[number // 6][trace.segment_NS > 0]
        share = 100 * np.mean(ids[ids < 6] == int(expert))
        assert float(percent) == pytest.approx(share, abs=0.06)


def test_domains_are_shown_where_there_are_several():
    trace = random_trace()
    assert "Domains by experts" not in html_of(view(trace))["preferences"]
    several = dataclasses.replace(
        trace, domain_N=np.array([0, 1, 1], np.int32), domains=("code", "<prose>")
    )
    html = html_of(view(several))["preferences"]
    assert "Domains by experts" in html and "<prose>" not in html


@pytest.mark.parametrize("experts", [8, 64])
def test_colours_of_experts_differ_and_carry_black_text(experts: int):
    colours = [colour(e, experts) for e in range(experts)]
    assert len(set(colours)) == experts
    assert all(int(re.search(r"(\d+)%\)", c)[1]) >= 65 for c in colours)


def test_the_sections_stand_behind_the_load(tmp_path):
    folder = write_run(tmp_path / "run", steps=40)
    html = build_report([folder], view(random_trace(1, step=1), random_trace(2, step=2)))
    ids = re.findall(r'<section id="(\w+)"', html)
    assert ids.index("load") < ids.index("text") < ids.index("drops") < ids.index("numbers")
    assert "http" not in re.sub(r'http-equiv|xmlns="[^"]*"', "", html)


def test_the_door_adds_them_for_a_run_with_checkpoints(cli, trained, tmp_path):  # noqa: F811
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    code, _, err = cli("report", f"--workdir={workdir}", "--routing", "--batches=1")
    assert code == 0, err
    html = (workdir / "report.html").read_text("utf-8")
    assert "Text by expert" in html and "One checkpoint only" not in html
    code, _, err = cli("report", f"--workdir={workdir},{trained}", "--routing")
    assert code == 2 and "--routing is of one run" in err
