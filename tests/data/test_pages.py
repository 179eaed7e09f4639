"""Printed pages: boxes and classes are those of the layout, no chapter is in two splits. Two
programs of the test's own stand for poppler's."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.data import pages
from moe_jax.data.pages import CLASSES, HEIGHT, INSIDE, VALIDATES, WIDTH, Pages, TextRun
from tests.data.archives import card_of, deb_of

UNIT = WIDTH / 892  # pixels of one of pdftohtml's
FONTS = {  # size, family
    "0": (15, "AAAAAA+FreeSerif"),
    "1": (15, "BBBBBB+FreeMonoBold"),
    "2": (15, "CCCCCC+FreeSerifBold"),
    "3": (22, "CCCCCC+FreeSerifBold"),
    "4": (15, "DDDDDD+FreeSansOblique"),
}
# left, top, width, font; each 15 high. The second is a part of the first, the third is blank.
LINES = [
    (100, 200, 60, "0"), (162, 200, 40, "0"), (204, 200, 4, "0"), (210, 201, 50, "1"),
    (264, 200, 80, "0"), (100, 230, 120, "3"), (100, 260, 30, "2"), (134, 260, 30, "4"),
    (500, 700, 60, "0"), (500, 720, 30, "1"), (500, 1000, 60, "0"),
]  # fmt: skip
PDFTOHTML = """#!{python} -S
import json, sys
assert sys.argv[1:-1] == ["-xml", "-i", "-q", "-stdout"]
sys.stdout.write(json.load(open(sys.argv[-1]))["xml"])
"""
PDFTOPPM = """#!{python} -S
import json, sys
assert sys.argv[1:-1] == ["-q", "-gray", "-r", "48"]
for grey in json.load(open(sys.argv[-1]))["greys"]:
    sys.stdout.buffer.write(b"P5\\n{width} {height}\\n255\\n" + bytes([grey]) * {width} * {height})
"""


def book(longer: int) -> bytes:
    """A page in front, then a page for each of 14 chapters, the first of which has `longer` pages
    more: grey 200 + chapter."""
    chapters = [-1, *[0] * longer, *range(14)]
    fonts = "".join(f'<fontspec id="{i}" size="{s}" family="{f}"/>' for i, (s, f) in FONTS.items())
    page, starts = "", []
    for number, chapter in enumerate(chapters, start=1):
        if chapter >= 0 and chapter != chapters[number - 2]:
            starts.append(number)
        texts = "".join(
            f'<text top="{top}" left="{left}" width="{width}" height="15" font="{font}">'
            f"<b>{' ' if width == 4 else 'words'}</b></text>"
            for left, top, width, font in LINES
        )
        first = fonts if number == 1 else ""
        page += f'<page number="{number}" height="1262" width="892">{first}{texts}</page>'
    items = "".join(f'<item page="{n}">title</item><outline/>' for n in starts)
    inner = '<outline><item page="3">a section</item></outline>'
    xml = f"<pdf2xml>{page}<outline>{items}{inner}</outline></pdf2xml>"
    return json.dumps({"xml": xml, "greys": [200 + c for c in chapters]}).encode()


@pytest.fixture
def programs(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    size = {"python": sys.executable, "width": WIDTH, "height": HEIGHT}
    for name, text in (("pdftohtml", PDFTOHTML), ("pdftoppm", PDFTOPPM)):
        (folder / name).write_text(text.format(**size))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def packed(monkeypatch, file, **books: bytes):
    """The archive of a guide in these languages."""
    content = deb_of({INSIDE.format(name): gzip.compress(one) for name, one in books.items()})
    file.write_bytes(content)
    monkeypatch.setattr(Pages, "card", card_of(pages.CARD, one=content))
    monkeypatch.setattr(pages, "LANGUAGES", tuple(books))


@pytest.fixture
def data(tmp_path, programs, monkeypatch):
    """The translation is a page longer, so that equal numbers are other pages."""
    packed(monkeypatch, tmp_path / "guide.deb", en=book(0), ja=book(1))
    return Pages(
        archive=str(tmp_path / "guide.deb"), data_dir=str(tmp_path / "data"),
        languages=("en", "ja"), mean=0.0, deviation=1.0,
    )  # fmt: skip


def greys(data, split):
    """(language, chapter) of every tile of a split."""
    rows = data.open(split)
    found = [rows[i] for i in range(len(rows))]
    return {
        (rows.domains[int(row["domain"])], round(float(row["image"].max()) * 255) - 200)
        for row in found
    }


def test_boxes_and_classes_are_those_of_the_layout(data):
    """Parts of a run are one, its neighbour of another font is another, blanks are none."""
    rows = data.open("validation")
    assert rows.classes == CLASSES == data.class_names()
    wanted = {
        ("text", 100, 200, 202), ("code", 210, 201, 260), ("text", 264, 200, 344),
        ("heading", 100, 230, 220), ("bold", 100, 260, 130), ("italic", 134, 260, 164),
        ("text", 500, 700, 560), ("code", 500, 720, 530),
    }  # fmt: skip
    seen = set()
    for index in range(len(rows)):
        place = rows.place_of(index)
        _, _, top, left = rows.images._where[place]
        row, n = rows[index], int(rows[index]["objects"])
        box_N4 = row["boxes"][:n].astype(float) * 64
        corner_N4 = np.concatenate([box_N4[:, :2] - box_N4[:, 2:] / 2,
                                    box_N4[:, :2] + box_N4[:, 2:] / 2], axis=1)  # fmt: skip
        assert (corner_N4 >= -1e-4).all() and (corner_N4 <= 64 + 1e-4).all() and n > 0
        assert (box_N4[:, 2] >= pages.LEAST - 1e-4).all()
        for number, corner in zip(row["classes"][:n], corner_N4, strict=True):
            own = (corner + np.array([left, top, left, top])) / UNIT
            (one,) = [
                w
                for w in wanted
                if w[0] == CLASSES[number]
                and abs(own[1] - max(w[2], top / UNIT)) < 0.1
                and w[1] - 0.1 <= own[0] < own[2] <= w[3] + 0.1
            ]
            seen.add(one)
    assert seen == wanted


def test_classes_by_font():
    names = {
        "FreeSerif": "text", "FreeSerifBold": "bold", "FreeSansOblique": "italic",
        "FreeSerifItalic": "italic", "FreeMonoBoldOblique": "code", "VL-PGothic-Regular": "text",
    }  # fmt: skip
    assert {name: pages.class_of(15, name, 15) for name in names} == names
    assert pages.class_of(12, "FreeSerifBold", 15) == "bold"
    assert pages.class_of(18, "VL-PGothic-Regular", 15) == "heading"
    assert pages.class_of(18, "FreeMono", 15) == "code"


def test_runs_are_joined_along_a_line_alone():
    run = TextRun(0, 10, 10, 20, 16)
    assert run.joined(TextRun(0, 26, 10.5, 30, 17)) == TextRun(0, 10, 10, 30, 17)
    for other in (
        TextRun(1, 22, 10, 30, 16),
        TextRun(0, 30, 10, 40, 16),
        TextRun(0, 22, 18, 30, 24),
    ):
        assert run.joined(other) is None
    assert run.joined(TextRun(0, 5, 10, 9, 16)) is None  # another column's


def test_no_chapter_is_in_two_splits_in_any_language(data):
    """A page and its translation stand together; what is in front of the chapters is nowhere."""
    found = {split: greys(data, split) for split in ("train", "validation")}
    every = {(name, chapter) for name in ("en", "ja") for chapter in range(14)}
    assert found["validation"] == {(n, c) for n, c in every if c in VALIDATES}
    assert found["train"] == every - found["validation"]


def test_a_held_out_language_does_not_train(data):
    held = replace(data, held_out=("ja",))
    assert {name for name, _ in greys(held, "train")} == {"en"}
    assert greys(held, "validation") == greys(data, "validation")
    assert held.open("train").fingerprint != data.open("train").fingerprint
    problems = {p.path for p in check(replace(data, held_out=("en", "ja")))}
    assert problems == {"held_out"} == {p.path for p in check(replace(data, held_out=("fr",)))}
    assert {p.path for p in check(replace(data, languages=("en", "xx"), height=600))} == {
        "languages", "height",
    }  # fmt: skip
    assert [p.path for p in check(replace(data, languages=("en", "en")))] == ["languages"]


def test_tiles_that_are_full_or_of_text_alone_are_left_out(data):
    rows = data.open("train")
    counts = [int(rows[i]["objects"]) for i in range(len(rows))]
    most = max(counts)
    few = replace(data, max_objects=most - 1).open("train")
    assert len(few) == sum(count < most for count in counts) < len(rows)
    text = CLASSES.index("text")
    for i in range(len(rows)):
        row = rows[i]
        assert set(row["classes"][: int(row["objects"])].tolist()) - {text}
    # The last line stands alone in its tile.
    assert {top for _, _, top, _ in rows.images._where} == {25 + 64, 25 + 4 * 64}


def test_it_is_offline_once_it_is_prepared(data, programs, tmp_path):
    first = data.open("train")
    shutil.rmtree(programs)
    (tmp_path / "guide.deb").unlink()
    again = replace(data, archive=None).open("train")
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again[3]["image"], first[3]["image"])


def test_without_poppler_the_package_is_named(data, programs):
    (programs / "pdftoppm").unlink()
    message = r"pdftoppm, which is not on the PATH: apt-get install poppler-utils"
    with pytest.raises(UserError, match=message):
        data.open("train")


def test_what_poppler_writes_otherwise_is_told(tmp_path, programs, monkeypatch):
    file = tmp_path / "guide.deb"
    whole = json.loads(book(0))
    for xml, greys, message in (
        (whole["xml"].replace("</page>", "", 1), whole["greys"], "en: pdftohtml writes other XML"),
        (whole["xml"].replace('<item page="3">', "<item>", 1), whole["greys"], "other XML"),
        (whole["xml"].replace('page="15"', 'page="14"'), whole["greys"], "not 14 chapters"),
        (whole["xml"], whole["greys"][:-1], "draws 14 pages and reads 15"),
        (whole["xml"], [], "draws no pages of 397 x 562"),
    ):
        packed(monkeypatch, file, en=json.dumps({"xml": xml, "greys": greys}).encode())
        data = Pages(archive=str(file), data_dir=str(tmp_path / "data"), languages=("en",))
        with pytest.raises(UserError, match=message):
            data.open("train")
    (programs / "pdftoppm").write_text("#!/bin/sh\necho damaged >&2\nexit 3\n")
    packed(monkeypatch, file, en=book(0))
    with pytest.raises(UserError, match="pdftoppm failed: damaged"):
        Pages(archive=str(file), data_dir=str(tmp_path / "x"), languages=("en",)).open("train")


def test_another_archive_is_refused(data, tmp_path):
    (tmp_path / "guide.deb").write_bytes(deb_of({}))
    with pytest.raises(UserError, match=r"guide\.deb: its sha256 is"):
        data.open("train")
    assert pages.CARD.archives[0].sha256.startswith("812c43e1dc906daf")
