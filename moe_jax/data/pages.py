"""Printed pages of one book in 18 languages: real pages and places of text, classes by font."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import numpy as np

from moe_jax.config.activity import counted
from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, languages_of
from moe_jax.config.json_files import JsonObject, read_object
from moe_jax.data.boxes import Annotated, BoxDataset
from moe_jax.data.fetch import deb
from moe_jax.data.fetch.apt import DebianPackage
from moe_jax.data.fetch.archives import Card
from moe_jax.data.fetch.dataset import SUMS, FetchedFolder
from moe_jax.data.store import digest

LANGUAGES = (
    "ca", "cs", "da", "de", "en", "es", "fr", "id", "it",
    "ja", "ko", "nl", "pt", "ro", "ru", "sv", "vi", "zh_CN",
)  # fmt: skip
INSIDE = "usr/share/doc/installation-guide-amd64/{0}/install.{0}.pdf.gz"
CLASSES = ("text", "code", "bold", "heading", "italic")
CARD = Card(
    title="Printed pages of Debian's installation guide in 18 languages: 2,186 pages; the classes "
    "of text are derived from its fonts",
    source="The Debian Installer team and its translators (www.debian.org/releases/stable)",
    license="GPL-2",
    archives=(
        DebianPackage(
            name="installation-guide-amd64",
            version="20230508+deb12u1",
            file="installation-guide-amd64_20230508+deb12u1_all.deb",
            sha256="812c43e1dc906daf671e3efe953dc023205c238e5bd5a3021ce4ca142793573a",
        ),
    ),
)
CHAPTERS = 14  # eight chapters and six appendices, in each language
VALIDATES = (3, 11)  # of them, from 0: how to get the system, and random bits
DPI = 48  # at which a line of text is 8 pixels high
HEIGHT, WIDTH = 562, 397  # of a page of A4
APART = 1.5  # of a line's height: as far two runs of a line lie apart that are one
LEAST, LEAST_SEEN = 4, 0.5  # pixels of its width and share of its height that a tile shows of a run


@dataclass(frozen=True)
class TextRun:
    """Text of one class on one line, in pixels."""

    number: int  # of the class
    left: float
    top: float
    right: float
    bottom: float

    def joined(self, other: TextRun) -> TextRun | None:
        """With what follows it on the page, where that is a part of the same run."""
        tall, gap = self.bottom - self.top, other.left - self.right
        if self.number != other.number or abs(self.top - other.top) > 0.25 * tall:
            return None
        if not -0.25 * tall <= gap <= APART * tall:
            return None
        top, bottom = min(self.top, other.top), max(self.bottom, other.bottom)
        return TextRun(self.number, self.left, top, other.right, bottom)


@dataclass(frozen=True, kw_only=True)
class Pages(FetchedFolder, BoxDataset):
    """Tiles of printed pages with the runs of text that they show: a run is what stands on a line
    in one style. The languages are the domains.

    Classes are derived from the font, as DocBank (2006.01038) derives them, and nobody has looked
    at each: of equal pitch is code; larger than the usual size is a heading; else bold, italic,
    text. The smallest headings are bold, footers are text; Chinese has no bold and no italic,
    Japanese and Korean have no code besides.

    languages: which are read. held_out: of those, which do not train; all validate.

    Splits: two of the 14 chapters validate, the same in each language, so that a page and its
    translations are in one split; the pages in front of the first chapter list the headings of
    all, and are in none. Tiles of text alone are left out, and those with more than `max_objects`
    runs. Preparing needs poppler's programs pdftohtml and pdftoppm (Debian's package
    poppler-utils); another version of it may draw a page otherwise.
    """

    kind_name: ClassVar[str] = "pages"
    card: ClassVar[Card] = CARD

    mean: float = 0.93
    deviation: float = 0.17
    flip: float = 0.0
    max_objects: int = 12
    languages: tuple[str, ...] = LANGUAGES
    held_out: tuple[str, ...] = ()

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from languages_of(self, LANGUAGES)
        if set(self.held_out) - set(self.languages):
            yield "held_out", "must be some of data.languages"
        elif self.languages and set(self.held_out) == set(self.languages):
            yield "held_out", "leaves no language to train on"
        if self.height > HEIGHT or self.width > WIDTH:
            yield "height", f"must be at most {HEIGHT} pixels, and the width {WIDTH}: a page"

    def class_names(self) -> tuple[str, ...]:
        return CLASSES

    def classes(self) -> tuple[str, ...]:
        return CLASSES

    def domains(self) -> tuple[str, ...]:
        return self.languages

    def identity(self) -> JsonObject:
        """With what poppler has made of the archive."""
        return {
            **self.origin(),
            "read": digest(read_object(self.source_folder() / SUMS)),
            "languages": list(self.languages),
            "held_out": list(self.held_out),
        }

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        require_poppler()
        (package,) = archives.values()
        files = deb.members(package, tuple(INSIDE.format(name) for name in LANGUAGES))
        languages = counted("reading the pages of", iter(LANGUAGES), "languages")
        for language in languages:
            with tempfile.TemporaryDirectory() as temporary:
                pdf = Path(temporary) / f"{language}.pdf"
                pdf.write_bytes(gzip.decompress(files[INSIDE.format(language)]))
                pixels_PHW = drawn(pdf)
                chapter_P, runs = read_layout(written(pdf), language)
            if len(pixels_PHW) != len(chapter_P):
                raise UserError(f"{language}: poppler draws {len(pixels_PHW)} pages and reads "
                                f"{len(chapter_P)}")  # fmt: skip
            flat = [(page, *vars(run).values()) for page, of in enumerate(runs) for run in of]
            np.savez_compressed(
                folder / f"{language}.npz",
                pages=pixels_PHW,
                chapters=np.asarray(chapter_P, np.int32),
                runs=np.asarray(flat, np.float32).reshape(-1, 6),
            )

    def annotated(self, split: str) -> PageTiles:
        folder = self.opened_folder()
        read = [name for name in self.languages if split != "train" or name not in self.held_out]
        return PageTiles(self, folder, read, split)


class PageTiles:
    """The tiles of a split's pages that show more than text."""

    def __init__(self, dataset: Pages, folder: Path, languages: Sequence[str], split: str):
        self._dataset, d = dataset, dataset
        self._pixels: list[np.ndarray] = []
        self._objects: list[tuple[np.ndarray, np.ndarray]] = []
        self._where: list[tuple[str, int, int, int]] = []
        parts_T4 = grid(d.height, d.width)
        for language in languages:
            with np.load(folder / f"{language}.npz") as file:
                pages, chapters, runs = (file[name] for name in ("pages", "chapters", "runs"))
            validates = np.isin(chapters, VALIDATES)
            own = validates if split != "train" else ~validates & (chapters >= 0)
            for page in np.flatnonzero(own):
                here = runs[runs[:, 0] == page]
                number_N, corner_N4 = here[:, 1].astype(np.int32), here[:, 2:]
                cut_TN4, seen_TN = shown(corner_N4, parts_T4)
                more_T = (seen_TN & (number_N != CLASSES.index("text"))[None]).any(axis=1)
                for tile in np.flatnonzero(more_T & (seen_TN.sum(axis=1) <= d.max_objects)):
                    left, top, right, bottom = parts_T4[tile]
                    self._pixels.append(pages[page, top:bottom, left:right].copy())
                    seen_N = seen_TN[tile]
                    self._objects.append((cut_TN4[tile][seen_N], number_N[seen_N]))
                    self._where.append((language, int(page), int(top), int(left)))

    def __len__(self) -> int:
        return len(self._where)

    def name(self, index: int) -> str:
        language, page, top, left = self._where[index]
        return f"the tile of page {page + 1} in {language} at row {top}, column {left}"

    def view(self, index: int, random: np.random.Generator | None) -> Annotated:
        corner_N4, number_N = self._objects[index]
        pixels_HWC = np.repeat(self._pixels[index][..., None], 3, axis=2)
        domain = self._dataset.languages.index(self._where[index][0])
        return Annotated(pixels_HWC, corner_N4, number_N, domain)


def grid(height: int, width: int) -> np.ndarray:
    """(tiles, 4) left, top, right, bottom of the tiles of a page, around its middle."""
    tops = range((HEIGHT % height) // 2, HEIGHT - height + 1, height)
    lefts = range((WIDTH % width) // 2, WIDTH - width + 1, width)
    return np.array([(x, y, x + width, y + height) for y in tops for x in lefts])


def shown(corner_N4: np.ndarray, part_T4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as each tile has them, (T, N, 4), and whether it shows enough of them, (T, N)."""
    low = np.maximum(corner_N4[None, :, :2], part_T4[:, None, :2])
    high = np.minimum(corner_N4[None, :, 2:], part_T4[:, None, 2:])
    tall_N = corner_N4[:, 3] - corner_N4[:, 1]
    seen_TN = high[..., 0] - low[..., 0] >= LEAST
    seen_TN &= high[..., 1] - low[..., 1] >= LEAST_SEEN * tall_N[None]
    moved = np.concatenate([low, high], axis=2) - part_T4[:, None, [0, 1, 0, 1]]
    return moved, seen_TN


# What poppler says of a book


def require_poppler() -> None:
    """UserError where a program is not there."""
    missing = [name for name in ("pdftohtml", "pdftoppm") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"data.kind=pages is prepared with {' and '.join(missing)}, which is not on the PATH: "
            "apt-get install poppler-utils, or data.kind=digit_scenes, which needs neither"
        )


def _output(*command: str) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise UserError(f"{command[0]} failed: {said[-1] if said else done.returncode}")
    return done.stdout


def written(pdf: Path) -> bytes:
    """XML of the lines of text with their boxes and fonts, and of the outline."""
    return _output("pdftohtml", "-xml", "-i", "-q", "-stdout", str(pdf))


def drawn(pdf: Path) -> np.ndarray:
    """The pages, uint8 (P, HEIGHT, WIDTH)."""
    return read_pgm(_output("pdftoppm", "-q", "-gray", "-r", str(DPI), str(pdf)))


def read_pgm(content: bytes) -> np.ndarray:
    """Pictures of one size that follow on each other: "P5", width, height, 255, greys."""
    size = b"P5\n%d %d\n255\n" % (WIDTH, HEIGHT)
    whole = len(size) + WIDTH * HEIGHT
    pages = [content[at : at + whole] for at in range(0, len(content), whole)]
    if not pages or any(len(page) < whole or not page.startswith(size) for page in pages):
        raise UserError(f"pdftoppm draws no pages of {WIDTH} x {HEIGHT} pixels at {DPI} dpi")
    greys = [np.frombuffer(page, np.uint8, offset=len(size)) for page in pages]
    return np.stack(greys).reshape(-1, HEIGHT, WIDTH)


def read_layout(xml: bytes, language: str) -> tuple[list[int], list[list[TextRun]]]:
    """Of each page its chapter, -1 before the first, and its runs. UserError where that is not as
    poppler writes it of this book."""
    try:
        root = ElementTree.fromstring(xml)
        starts = [int(item.attrib["page"]) for item in root.findall("outline/item")]
        fonts = {font.attrib["id"]: font.attrib for font in root.iter("fontspec")}
        sizes = Counter(fonts[text.attrib["font"]]["size"] for text in root.iter("text"))
        usual = int(sizes.most_common(1)[0][0]) if sizes else 0
        number = {
            name: CLASSES.index(class_of(int(font["size"]), font["family"], usual))
            for name, font in fonts.items()
        }
        runs = [list(_runs(page, number)) for page in root.findall("page")]
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise UserError(f"{language}: pdftohtml writes other XML ({error!r})") from error
    if len(starts) != CHAPTERS or sorted(set(starts)) != starts:
        raise UserError(f"{language}: not {CHAPTERS} chapters with a first page each: {starts}")
    chapters = [sum(start <= page for start in starts) - 1 for page in range(1, len(runs) + 1)]
    return chapters, runs


def class_of(size: int, family: str, usual: int) -> str:
    """By a font's size and name, and the usual size of the book."""
    if "Mono" in family:
        return "code"
    if size > usual:
        return "heading"
    if "Bold" in family:
        return "bold"
    return "italic" if "Italic" in family or "Oblique" in family else "text"


def _runs(page: ElementTree.Element, number: Mapping[str, int]) -> Iterator[TextRun]:
    """In the order of the page. Blanks are none."""
    scale = WIDTH / float(page.attrib["width"])
    last: TextRun | None = None
    for text in page.findall("text"):
        if not "".join(text.itertext()).strip():
            continue
        left, top, width, height = (
            scale * float(text.attrib[name]) for name in ("left", "top", "width", "height")
        )
        run = TextRun(number[text.attrib["font"]], left, top, left + width, top + height)
        joined = last.joined(run) if last is not None else None
        if last is not None and joined is None:
            yield last
        last = joined or run
    if last is not None:
        yield last
