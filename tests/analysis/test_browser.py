"""Reports as headless Chromium lays them out, at two widths: nothing overflows, nothing overlaps.

make test-browser; Chromium (Debian's package) must be installed.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from moe_jax.analysis.report import build_report
from moe_jax.analysis.report.routing import RoutingView
from tests.analysis.drawn_trace import random_trace
from tests.analysis.fake_run import write_run

pytestmark = pytest.mark.browser
WIDTHS = (1280, 500)  # the narrowest window that headless Chromium opens
# What a person would find ugly, as a list of sentences.
PROBE = """
(() => {
const found = [];
const say = (what, element) => found.push(
  what + ": " + element.tagName + "." + element.className + " " + element.textContent.slice(0, 40));
for (const details of document.querySelectorAll("details")) details.open = true;
const page = document.documentElement;
if (page.scrollWidth > innerWidth + 1) found.push("the page is wider than the window");
const scrolls = element => element.closest(".scroll, .parallel, pre");
for (const element of document.querySelectorAll("main *")) {
  const box = element.getBoundingClientRect();
  if (!box.width || element.closest("svg")) continue;
  if (!scrolls(element) && box.right > innerWidth + 1) say("beyond the window", element);
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (own && parseFloat(getComputedStyle(element).fontSize) < 10.5) say("too small", element);
}
for (const axis of document.querySelectorAll(".x-axis, .y-axis, .bar-labels, .axis")) {
  const boxes = [...axis.children].map(child => child.getBoundingClientRect());
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
    if (a.left < b.right - 1 && b.left < a.right - 1
        && a.top < b.bottom - 2 && b.top < a.bottom - 2) say("labels overlap", axis);
  }));
}
for (const figure of document.querySelectorAll("figure")) {
  const box = figure.getBoundingClientRect();
  const parts = [...figure.children].map(part => part.getBoundingClientRect());
  parts.forEach((a, i) => {
    if (a.height && (a.bottom > box.bottom + 1 || a.top < box.top - 1))
      say("leaves its card", figure);
    parts.slice(i + 1).forEach(b => {
      if (a.height && b.height && a.top < b.bottom - 1 && b.top < a.bottom - 1
          && a.left < b.right - 1 && b.left < a.right - 1) say("parts overlap", figure);
    });
  });
  for (const body of figure.querySelectorAll(".plot, .scroll, .parallel"))
    if (body.getBoundingClientRect().height < 40) say("collapsed", figure);
}
for (const section of document.querySelectorAll("section"))
  if (section.getBoundingClientRect().height < 60) say("empty", section);
document.title = "PROBE" + JSON.stringify(found);
})();
"""


def faults(page: str, width: int, folder: Path) -> list[str]:
    """What the probe finds on a page in a window of this width."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser, "make test-browser needs Chromium"
    file = folder / f"page_{width}.html"
    file.write_text(page.replace("</body>", f"<script>{PROBE}</script></body>"), "utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--window-size={width},900", f"--user-data-dir={folder}/profile", file.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    match = re.search(r"<title>PROBE(.*?)</title>", dumped, re.DOTALL)
    assert match is not None, dumped[:500]
    return sorted(set(json.loads(html.unescape(match[1]))))


def routed(folder: Path, *, layers: int, experts: int, k: int) -> str:
    """The report of a run with drops, two checkpoints and --routing."""
    run = write_run(folder / "run", layers=layers, experts=experts, k=k, capacity_factor=1.0)
    traces = [
        random_trace(seed, step=100 * seed, L=layers, N=8, S=120, K=k, E=experts) for seed in (1, 2)
    ]
    letters = ["def ", "x", "\n", "<", "longer_name"]
    return build_report([run], RoutingView(traces, lambda token: letters[token]))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("layers", "experts", "k"), [(4, 8, 2), (16, 64, 8), (1, 4, 1)])
def test_a_report_with_routing_is_readable(tmp_path, layers, experts, k, width):
    assert faults(routed(tmp_path, layers=layers, experts=experts, k=k), width, tmp_path) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_is_readable(tmp_path, width):
    runs = [write_run(tmp_path / f"run_{n}", experts=n, seed=n) for n in (8, 16, 0)]
    assert faults(build_report(runs), width, tmp_path) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_sweeps_report_is_readable(tmp_path, width):
    from moe_jax.sweeps import space as h
    from tests.sweeps.drawn_page import page

    sweep = h.parse("moe.router.k=1,2,4; moe.capacity_factor=1.0,1.25,none; seed=0..1")
    failed = ("k=4,capacity_factor=1.25,seed=1",)
    written = page(tmp_path, sweep, lambda e: 2 - 0.1 * e.moe.router.k + 0.01 * e.seed, failed)
    assert faults(written, width, tmp_path) == []


def test_the_probe_sees_what_is_wrong(tmp_path):
    page = routed(tmp_path, layers=1, experts=4, k=1)
    wide = page.replace("<main>", '<main><div style="width:3000px">wide</div>', 1)
    assert any("wider" in fault for fault in faults(wide, 1280, tmp_path))
    small = page.replace("<main>", '<main><p style="font-size:7px">small</p>', 1)
    assert any("too small" in fault for fault in faults(small, 1280, tmp_path))
    crowded = page.replace(
        '<div class="x-axis">', '<div class="x-axis"><span>aa</span><span>bb</span>', 1
    )
    assert any("labels overlap" in fault for fault in faults(crowded, 1280, tmp_path))
