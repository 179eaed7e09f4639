"""The report of a sweep: what it draws is what was measured, and nothing is loaded."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moe_jax.sweeps import space as h
from moe_jax.sweeps.charts import AxisScale, Dot, heat_table, parallel, scatter, shade
from moe_jax.sweeps.matching import Matching
from moe_jax.sweeps.points import resolve
from moe_jax.sweeps.report import build_report
from moe_jax.sweeps.table import Row, arms_of, costs_of
from tests.sweeps.drawn_page import CONFIG, page


class Page(HTMLParser):
    """Ids of sections, what is referred to, and whether tags are closed."""

    def __init__(self, html: str):
        super().__init__()
        self.sections, self.links, self.open = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag == "section":
            self.sections.append(dict(attributes)["id"])
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes): ...

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_grid_over_seeds_has_all_sections(tmp_path: Path):
    sweep = h.parse("moe.router.k=1,2,4; moe.capacity_factor=1.0,none; seed=0..1")
    failed = ("k=4,capacity_factor=1.0,seed=1",)
    html = page(tmp_path, sweep, lambda e: 2 - 0.1 * e.moe.router.k + 0.01 * e.seed, failed)
    found = Page(html)
    assert found.sections == ["arms", "cost", "parallel", "pairs", "curves", "runs"]
    assert all(link.startswith(("#", "points/")) for link in found.links)
    assert "11 of 12 runs are done" in html
    assert "error: &lt;it&gt; went wrong" in html
    assert html.count('class="strand"') == 11
    # Means over both seeds in the heat map: k = 2, no capacity factor.
    cells = re.findall(r"<td style=[^>]*>([\d.]+)</td>", html)
    assert cells == ["1.905", "1.905", "1.805", "1.805", "1.6", "1.605"]
    # Differences to the first arm, which are the same for both seeds.
    assert "<b>-0.1" in html and "<b>-0.3" in html


@pytest.mark.parametrize("text", ["seed=0", "moe.router.k=1,2", "seed=0..3"])
def test_a_small_sweep_has_a_report(tmp_path: Path, text: str):
    found = Page(page(tmp_path, h.parse(text), lambda e: 2.0 + e.seed))
    assert {"arms", "runs"} <= set(found.sections)


def test_nothing_done_yet(tmp_path: Path):
    html = page(tmp_path, h.parse("moe.router.k=1,2"), None, failed=("k=1", "k=2"))
    assert Page(html).sections == ["arms", "runs"]


def test_the_importance_of_a_searchs_settings_is_told(tmp_path: Path):
    points = resolve(CONFIG, {}, h.parse("moe.router.k=1,2; moe.expert_dim=64,128"), Matching())
    rows = [
        Row(point, done=True, metrics={"bits_per_byte": 1.0 + n}, costs=costs_of(point, 0.0))
        for n, point in enumerate(points)
    ]
    shares = {"moe.expert_dim": 0.75, "moe.router.k": 0.25}
    html = build_report(tmp_path, rows, arms_of(rows, "bits_per_byte"), "bits_per_byte", shares)
    assert "(PED-ANOVA): expert_dim 75%, k 25%." in html


def test_many_numbers_are_put_into_bins(tmp_path: Path):
    sweep = tuple(
        {"optimizer.learning_rate": 10 ** (-4 + n / 20), "moe.expert_dim": 8 + 8 * (n * 7 % 40)}
        for n in range(40)
    )
    html = page(tmp_path, sweep, lambda e: e.optimizer.learning_rate)
    assert html.count('class="strand"') == 40
    assert "The 30 best of 40 arms" in html
    assert len(re.findall(r'<th scope="row">[\d.e-]+ – ', html)) == 5


def test_scales_are_linear_logarithmic_or_names():
    linear = AxisScale.of([1, "2", 3.0])
    assert linear.places("2") == pytest.approx((linear.places(1) + linear.places(3)) / 2)
    log = AxisScale.of([1e-4, 1e-2, 1.0])
    assert log.places(1e-2) == pytest.approx((log.places(1e-4) + log.places(1.0)) / 2)
    rates = AxisScale.of([2e-4 * 1.5**n for n in range(10)])  # as one writes them, not 0.00500
    assert [label for _, label in rates.ticks] == ["0.0002", "0.0005", "0.001", "0.002", "0.005"]
    assert AxisScale.of([2e-5, 3e-3]).ticks[0][1] == "2e-5"
    names = AxisScale.of(["switch", None, "none", "switch"])
    assert [names.places(v) for v in ("switch", None, "none")] == [1 / 6, 3 / 6, 5 / 6]
    assert AxisScale.of([5]).places(5) == 0.5


def test_points_stand_where_their_values_are():
    dots = [Dot(1.0, 2.0, "red", "a"), Dot(3.0, 4.0, "red", "b"), Dot(2.0, 3.0, "red", "c")]
    svg = scatter(dots, [], x_title="x", y_title="y", lower_is_better=True)
    places = [
        tuple(map(float, m)) for m in re.findall(r'class="dots".*?d="M([\d.]+) ([\d.]+)h0', svg)
    ]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x2 == pytest.approx((x0 + x1) / 2) and y2 == pytest.approx((y0 + y1) / 2)
    assert x0 < x1 and y0 > y1  # up is more


def test_the_front_leaves_out_what_costs_more_and_is_worse():
    means = [Dot(x, y, "red", "") for x, y in ((1, 5), (2, 6), (3, 4), (4, 4.5), (5, 1))]
    svg = scatter([], means, x_title="x", y_title="y", lower_is_better=True)
    front = re.search(r'class="reference" d="M([^"]*)"', svg)
    assert front is not None and front[1].count("L") == 2
    up = scatter([], means, x_title="x", y_title="y", lower_is_better=False)
    front = re.search(r'class="reference" d="M([^"]*)"', up)
    assert front is not None and front[1].count("L") == 1  # (1, 5), (2, 6)


def test_odd_names_are_escaped_and_lines_meet_their_axes():
    html = parallel(["a<b", "c"], [["x&y", 1.0], ["z", 2.0]], ["red", "blue"], ['t"1', "t2"])
    assert "a<b" not in html and "x&y" not in html and 't"1' not in html
    strands = re.findall(r'class="strand".*?d="M(\S+) \S+L(\S+) \S+"', html)
    assert strands == [("0", "1000.0"), ("0", "1000.0")] or strands == [("0.0", "1000.0")] * 2
    table = heat_table(
        [1],
        [2, 3],
        {(1, 2): math.nan, (1, 3): 4.0},
        row_title="<",
        column_title="",
        lower_is_better=True,
    )
    assert table.count('class="empty"') == 1 and "&lt;" in table


def test_the_best_is_light_whichever_way_is_better():
    for lower, best in ((True, 1.0), (False, 3.0)):
        colour = shade([1.0, 2.0, 3.0], lower)
        assert colour(best)[0] == "rgb(235,200,60)"
