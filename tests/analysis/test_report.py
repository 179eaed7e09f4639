"""The page: well-formed, alone, complete, and true to the numbers it was made from."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from moe_jax.analysis.read_run import Series, read_metrics, read_runs
from moe_jax.analysis.report import build_report, heat_map, write_report
from moe_jax.analysis.report.catalogue import METRICS
from moe_jax.analysis.report.curves import curves
from moe_jax.analysis.report.line_chart import Line, line_chart, thin
from moe_jax.analysis.report.numbers import formatted, log_ticks, step_ticks, tick_labels, ticks
from moe_jax.analysis.report.tables import SUMMARY, differing
from moe_jax.config.errors import UserError
from moe_jax.tasks import TASKS
from tests.analysis.fake_run import write_run

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """The elements and the visible text of a page; fails on tags that do not match."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        found = [attributes for name, attributes in self.elements if name == tag]
        return [a for a in found if not kind or kind in (a.get("class") or "").split()]

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for attributes in self.all("section")]


def page(*workdirs: Path) -> Page:
    return Page(build_report(workdirs))


def points(path: str) -> list[tuple[int, int]]:
    """The points of an SVG path of M x y and l dx dy."""
    found: list[tuple[int, int]] = []
    for kind, a, b in re.findall(r"([Ml])(-?\d+) (-?\d+)", path):
        x, y = found[-1] if kind == "l" else (0, 0)
        found.append((x + int(a), y + int(b)))
    return found


def pixels(source: str) -> tuple[np.ndarray, np.ndarray]:
    """(palette indices (rows, columns), palette (n, 3)) of a PNG's data: URI."""
    data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(body)
        chunks[body[:4].decode()] = body[4:]
        at += 12 + size
    columns, rows = struct.unpack(">II", chunks["IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(chunks["IDAT"]), np.uint8).reshape(rows, columns + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:], np.frombuffer(chunks["PLTE"], np.uint8).reshape(-1, 3)


def values_of(index: np.ndarray) -> np.ndarray:
    """What palette indices stand for, as the page's script computes it."""
    ratio = 2.0 ** (heat_map.LOWEST + (index.astype(float) - 1) / heat_map.PER_OCTAVE)
    return np.where(index == 0, 0, ratio)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "small": write_run(folder / "small"),
        "switch": write_run(folder / "switch", k=1, capacity_factor=1.25, seed=1, quality=0.1),
        "dense": write_run(folder / "dense", experts=0, seed=2),
        "large": write_run(
            folder / "large", layers=16, experts=64, k=8, steps=2000, capacity_factor=1.0
        ),
        "going": write_run(folder / "going", steps=130, total=400, seed=3),
        "first": write_run(folder / "first", steps=10, total=400),
    }


CASES = [["small"], ["dense"], ["large"], ["going"], ["first"], ["small", "switch"],
         ["small", "dense", "going", "first"], ["large", "small"], ["dense", "small"]]  # fmt: skip


@pytest.mark.parametrize("names", CASES, ids="-".join)
def test_the_page_is_well_formed_and_alone(runs, names):
    html = build_report([runs[name] for name in names])
    found = Page(html)
    assert not re.search(r"(?i)https?:|//\w+\.|@import|url\(|<link|<iframe", html)
    for _, attributes in found.elements:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)
    ids = [attributes["id"] for _, attributes in found.elements if attributes.get("id")]
    assert len(set(ids)) == len(ids)
    assert {link["href"] for link in found.all("a")} == {f"#{name}" for name in found.sections}
    assert "nan" not in re.findall(r"\b[a-z]+\b", found.text)
    assert len(html) < 1_000_000


@pytest.mark.parametrize("name", ["small", "dense", "large", "going", "first"])
def test_every_metric_of_the_file_appears(runs, name):
    found = page(runs[name])
    layered = re.compile(r"moe/layer_\d+/")
    for line in read_metrics(runs[name]):
        for metric, value in line.items():
            if isinstance(value, float) and not layered.match(metric):
                assert metric in found.text
            elif isinstance(value, float):
                assert layered.sub("moe/", metric) in found.text
    for metric in ("Load", "Gradient norm"):
        assert (f"{metric}, " in found.text) == (name != "dense")


def test_an_unknown_metric_has_a_figure_too(runs, tmp_path):
    folder = write_run(tmp_path / "run", steps=50)
    with (folder / "metrics.jsonl").open("a") as file:
        for step in (60, 70):
            line = {"step": step, "split": "train", "moe/of_a_new_idea": step / 7, "list": [1, 2]}
            file.write(json.dumps(line) + "\n")
    found = page(folder)
    assert "other" in found.sections
    assert "moe/of_a_new_idea" in found.text


def test_curves_show_the_numbers_of_the_file(runs):
    html = curves(read_runs([runs["small"]]), "cross_entropy")
    svg = Page(html).all("svg", "lines")[0]
    x0, x1 = map(float, svg["data-x"].split(","))
    y0, y1 = map(float, svg["data-y"].split(","))
    lines = Page(html).all("path", "line")
    assert [line["data-label"] for line in lines] == ["train", "evaluation"]
    for line, split in zip(lines, ("train", "eval"), strict=True):
        drawn = np.array(points(line["d"])) / 10_000
        expected = [
            (entry["step"], entry["cross_entropy"])
            for entry in read_metrics(runs["small"])
            if entry["split"] == split and "cross_entropy" in entry
        ]
        steps, values = x0 + drawn[:, 0] * (x1 - x0), y0 + (1 - drawn[:, 1]) * (y1 - y0)
        np.testing.assert_allclose(steps, [step for step, _ in expected], atol=(x1 - x0) / 10_000)
        np.testing.assert_allclose(values, [v for _, v in expected], atol=(y1 - y0) / 10_000)


def test_heat_maps_show_the_loads_of_the_file(runs):
    maps = [image for image in page(runs["small"]).all("img", "heat") if "data-first" in image]
    assert [json.loads(image["data-title"]) for image in maps] == [f"Layer {n}" for n in range(4)]
    for layer, image in enumerate(maps):
        index, _ = pixels(image["src"])
        loads = [
            line[f"moe/layer_{layer:02d}/load"]
            for line in read_metrics(runs["small"])
            if line["split"] == "train" and f"moe/layer_{layer:02d}/load" in line
        ]
        relative = np.clip(8 * np.array(loads).T, 2.0**heat_map.LOWEST, 2.0**heat_map.HIGHEST)
        np.testing.assert_allclose(values_of(index), relative, rtol=0.015)
        first, width = json.loads(image["data-first"]), json.loads(image["data-width"])
        assert (first, width) == (10, 10)


def test_matrix_shows_the_last_evaluation(runs):
    last = [line for line in read_metrics(runs["large"]) if line["split"] == "eval"][-1]
    images = [image for image in page(runs["large"]).all("img", "heat") if "data-layers" in image]
    index, _ = pixels(images[0]["src"])
    loads = np.array([last[f"moe/layer_{n:02d}/load"] for n in range(16)])
    np.testing.assert_allclose(values_of(index), 64 * loads, rtol=0.015)
    assert json.loads(images[0]["data-layers"]) == list(range(16))


def test_colours_are_monotone_in_the_load():
    ratios = np.concatenate([[0], 2.0 ** np.linspace(-7, 7, 600)])
    index = heat_map.index_of(ratios)
    assert np.all(np.diff(index.astype(int)) >= 0)
    shown, palette = pixels(Page(heat_map.image(ratios[None], "")).all("img")[0]["src"])
    assert np.array_equal(shown[0], index)
    red, green, blue = palette[index].astype(int).T
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    balanced = np.searchsorted(ratios, 1.0)
    assert np.all(np.diff(light[: balanced - 1]) >= 0)  # darker the less there is
    assert np.all(np.diff(light[balanced + 1 :]) <= 0)  # and the more there is
    within = (ratios > 0.3) & (ratios < 0.8)
    assert np.all(blue[within] > red[within])
    within = (ratios > 1.25) & (ratios < 3.5)
    assert np.all(red[within] > blue[within])
    pale = palette[heat_map.index_of(np.array([1.0]))[0]]
    assert pale.min() > 230


def test_no_load_and_no_data_have_indices_of_their_own():
    assert heat_map.index_of(np.array([0.0, np.nan, 1.0])).tolist() == [0, heat_map.NOTHING, 97]


def test_columns_average_points_and_leave_gaps_empty():
    loads = np.tile([0.25, 0.75], (4, 1))
    loads[1] = [0.5, 0.5]
    uneven = heat_map.in_columns(Series(np.array([10, 12, 40, 50]), loads), 5)
    assert uneven.first == 10
    assert uneven.width == pytest.approx(40 / 3)
    np.testing.assert_allclose(uneven.relative_EC[:, 0], [0.75, 1.25])  # of 10 and 12
    assert np.isnan(uneven.relative_EC[:, 1]).all()  # 23: no point is near
    single = heat_map.in_columns(Series(np.array([30]), loads[:1]), 5)
    np.testing.assert_allclose(single.relative_EC, [[0.5], [1.5]])
    many = heat_map.in_columns(Series(np.arange(1, 1001), np.full((1000, 4), 0.25)), 100)
    assert many.relative_EC.shape == (4, 100)
    np.testing.assert_allclose(many.relative_EC, 1)


def test_shares_of_drops_are_tables(tmp_path):
    """By rank and place where something was dropped; a column that says nothing is no table."""
    folder = tmp_path / "run"
    folder.mkdir()
    line = {"step": 1, "split": "eval", "moe/layer_03/load": [0.5, 0.5]}
    line |= {"moe/layer_03/dropped_by_rank": [0.125, 0.25]}
    line |= {"moe/layer_03/dropped_by_position": [0.0] * 8}
    line |= {"moe/layer_03/experts_histogram": [0.0, 0.0, 1.0]}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    text = write_report([folder]).read_text()
    assert "rank of choice" in text and "12.5" in text and "layer 3" in text
    assert "place in the row" not in text and "Experts that a token got" not in text


def test_evaluation_and_training_are_told_apart(tmp_path):
    """A run that drops in training and is evaluated dropless: the page said "0 % dropped"."""
    lines = [
        {"step": 4, "split": "train", "moe/dropped_fraction": 0.2, "moe/capacity_factor": 1.25},
        {"step": 4, "split": "eval", "cross_entropy": 2.0, "moe/dropped_fraction": 0.0},
    ]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    alone = " ".join(page(tmp_path / "one").text.split())
    evaluation, training = alone.split("Training, step 4, capacity factor 1.25")
    assert "Evaluation, step 4, dropless" in evaluation
    assert re.search("Dropped assignments ?0 %", evaluation)
    assert re.search("Dropped assignments ?20", training)
    both = page(tmp_path / "one", tmp_path / "two").text
    assert "Dropped assignmentseval" in both and "Dropped assignmentstrain" in both
    assert "one: evaluation dropless, training capacity factor 1.25; two: evaluation" in both


def test_a_layer_without_any_load_is_no_data(tmp_path):
    folder = write_run(tmp_path / "run", steps=20)
    zeros = {"step": 30, "split": "train", "moe/layer_00/load": [0.0] * 8}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(zeros) + "\n")
    maps = [image for image in page(folder).all("img", "heat") if "data-first" in image]
    index, _ = pixels(maps[0]["src"])
    assert np.all(index[:, -1] == heat_map.NOTHING)


def test_several_runs_share_figures(runs):
    found = page(runs["small"], runs["switch"], runs["dense"])
    labels = [line["data-label"] for line in found.all("path", "line")]
    for name in ("small", "switch", "dense"):
        assert f"{name}, train" in labels
        assert f"{name}, evaluation" in labels
    assert "Bits per byte: difference" in found.text
    assert "moe.capacity_factor" in found.text.split("Learning")[1]  # in the differences
    maps = [image for image in found.all("img", "heat") if "data-first" in image]
    assert len(maps) == 2 * 4
    assert "Without experts, so not shown here: dense" in found.text


def test_difference_is_that_of_the_evaluations(runs):
    html = build_report([runs["small"], runs["switch"]])
    figure = html[html.index("Bits per byte: difference") :]
    y0, y1 = map(float, re.search('data-y="([^"]*)"', figure)[1].split(","))
    line = re.search('data-label="switch" d="([^"]*)"', figure)
    shown = [y0 + (1 - y / 10_000) * (y1 - y0) for _, y in points(line[1])]
    of_run = [
        [x["bits_per_byte"] for x in read_metrics(runs[name]) if x["split"] == "eval"]
        for name in ("small", "switch")
    ]
    np.testing.assert_allclose(shown, np.subtract(of_run[1], of_run[0]), atol=(y1 - y0) / 10_000)


def test_the_best_run_is_marked(runs):
    html = build_report([runs["small"], runs["switch"]])
    row = re.search(r'<tr><th scope="row"><span class="chip run-0">.*?</tr>', html)[0]
    bits = read_runs([runs["small"]])[0].get("bits_per_byte", "eval").last
    assert f"<strong>{formatted(bits)}</strong>" in row


def test_sections_without_content_are_left_out(runs):
    assert {"load", "routing"} <= set(page(runs["small"]).sections)
    dense = page(runs["dense"]).sections
    assert "learning" in dense
    assert not {"load", "routing", "layers", "other"} & set(dense)


def test_runs_of_other_batches_are_pointed_out(runs, tmp_path):
    other = write_run(tmp_path / "other", steps=20)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "batch_size": 32}))
    assert "small 4,096, other 8,192" in page(runs["small"], other).text
    assert "not the same amount of data" not in page(runs["small"], runs["switch"]).text


def test_config_and_environment_are_there_and_escaped(tmp_path):
    folder = write_run(tmp_path / "<b>&run", steps=20)
    config = json.loads((folder / "config.json").read_text())
    config["name"] = "<script>alert(1)</script>"
    (folder / "config.json").write_text(json.dumps(config))
    found = page(folder)
    assert "<script>alert(1)</script>" in found.text
    assert "moe.router.kind" in found.text
    assert "0123456789abcdef0123456789abcdef01234567" in found.text
    assert len(found.all("script")) == 1


def test_a_bare_metrics_file_is_enough(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 3.5}\n')
    assert "3.5" in page(tmp_path).text


def test_losses_that_are_not_finite_are_marked(tmp_path):
    folder = write_run(tmp_path / "run", steps=100)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "split": "train", "loss": null}\n')
        file.write('{"step": 120, "split": "train", "loss": 2.0}\n')
    html = build_report([folder])
    assert len(Page(html).all("path", "bad")) == 1
    assert "train: NaN or inf at step 110" in html


def test_only_nan_can_be_drawn(tmp_path):
    values = {"split": "train", "loss": None, "moe/max_violation": None}
    lines = [json.dumps({"step": step, **values}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert "Training loss" in page(tmp_path).text


def test_the_spike_is_kept_where_points_are_left_out():
    values = np.sin(np.arange(100_000) / 5000)
    values[54_321], values[77_777] = 9.0, np.nan
    thinned = thin(Series(np.arange(100_000), values), 400)
    assert len(thinned.steps) <= 400
    assert thinned.values.max() == 9
    assert thinned.steps[[0, -1]].tolist() == [0, 99_999]
    assert np.all(np.diff(thinned.steps) > 0)


def test_a_steep_beginning_leaves_the_figure_and_says_so():
    steps = np.arange(1, 101)
    falling = Line("x", Series(steps, 2 + 1000.0 * (steps == 1)), "red", "train")
    _, cut = line_chart([falling], (0, 100), early=True)
    assert cut
    html, cut = line_chart([falling], (0, 100))
    assert not cut
    assert float(re.search('data-y="[^,]*,([^"]*)"', html)[1]) > 1002


def test_tick_labels_are_the_ticks():
    rng = np.random.default_rng(0)
    for _ in range(300):
        low = float(rng.normal() * 10 ** rng.uniform(-5, 6))
        high = low + float(10 ** rng.uniform(-4, 6))
        found = ticks(low, high)
        assert 2 <= len(found) <= 7
        slack = 1e-6 * (high - low)
        assert low - slack <= found[0] <= found[-1] <= high + slack
        labels = tick_labels(found)
        assert len(set(labels)) == len(labels)
        for value, label in zip(found, labels, strict=True):
            unit = {"k": 1e3, "M": 1e6, "G": 1e9}.get(label[-1], 1)
            read = float(label.rstrip("kMG")) * unit
            assert read == pytest.approx(value, abs=1e-3 * (high - low))


def test_ticks_of_steps_are_whole():
    assert step_ticks(0, 400) == [0, 100, 200, 300, 400]
    assert step_ticks(0, 1) == [0, 1]
    assert all(tick == int(tick) for tick in step_ticks(0, 7))
    assert 2 <= len(log_ticks(1e-9, 1e9)) <= 8
    assert log_ticks(1.5, 60) == [2, 5, 10, 20, 50]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.25, "1.25"), (2.12345, "2.123"), (5363.2, "5,363"), (0.0123456, "0.01235"),
     (3.2e-5, "3.20e-5"), (2.4e6, "2.4 M"), (math.nan, "–"), (None, "–"), (400.0, "400"),
     (-0.5, "-0.5")],
)  # fmt: skip
def test_numbers_for_people(value, text):
    assert formatted(value) == text


def test_percentages_for_people():
    assert formatted(0.0309, percent=True) == "3.09 %"
    assert formatted(1.0, percent=True) == "100 %"
    assert tick_labels([0.0, 0.25, 0.5], percent=True) == ["0 %", "25 %", "50 %"]
    assert tick_labels([-1e29, -5e28, 0.0], percent=True) == ["-1e31 %", "-5e30 %", "0 %"]
    assert tick_labels([0.0, 5e12]) == ["0", "5000G"]
    assert tick_labels([0.0, 1e13]) == ["0", "1e13"]


def test_only_what_differs_is_listed():
    one = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    assert differing([one, one]) == {}
    assert differing([one, {"a": {"b": 2, "c": [1, 2]}}]) == {"a.b": ["1", "2"], "d": ["null", "–"]}
    assert differing([one, {"a": {"b": 1.0, "c": [1, 2.0]}, "d": None}]) == {}  # the same number
    assert differing([{"a": 1}, {"a": True}, {"a": "1"}]) == {"a": ["1", "true", "1"]}


def test_where_the_file_goes(runs, tmp_path):
    folder = write_run(tmp_path / "runs" / "a", steps=20)
    other = write_run(tmp_path / "runs" / "b", steps=20)
    assert write_report([folder]) == folder / "report.html"
    assert write_report([folder, other]) == tmp_path / "runs" / "report.html"
    out = tmp_path / "deep" / "er" / "page.html"
    assert write_report([folder], out).read_text("utf-8") == build_report([folder])
    assert [file.name for file in out.parent.iterdir()] == ["page.html"]


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    folder = write_run(tmp_path / "a", steps=20)
    with pytest.raises(UserError, match="cannot be written"):
        write_report([folder], folder / "config.json" / "report.html")
    with pytest.raises(UserError, match="cannot be written"):
        write_report([folder], tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("kind", TASKS)
def test_what_a_task_puts_first_is_among_the_first_figures(kind):
    for headline in TASKS[kind].headlines:
        assert headline.name in SUMMARY["eval"]
        assert METRICS[headline.name].best == headline.best
