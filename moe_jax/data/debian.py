"""The descriptions of Debian's packages: in English, and as its translators have them in others.

Read from the indices of a release: what a description belongs to (sections, tags, sources), and its
text in each language. Descriptions that any source package shares are one group: no group is in two
splits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from moe_jax.config.activity import counted
from moe_jax.config.errors import UserError
from moe_jax.data.fetch.apt import DebianIndex
from moe_jax.data.fetch.archives import Card
from moe_jax.data.fetch.dataset import Fetched

ENGLISH = "en"
# sha256 of each index, unpacked, as the release's InRelease file has it.
INDICES = {
    "Packages": "515e692f2c4121c6fcec444ef100cc18f79a991910615f3a88c8b7becfc94d2f",
    "Translation-en": "62f59c3cdca9786e4f7adf9002f9f5729a684adcb4667e58e448dec9b5a46c7f",
    "Translation-it": "f2010961f0968127812de8484ecead4f45b25b2cb6aeb788f9f25753fbd5cff7",
    "Translation-da": "dc3e8f2d1f51c3dde7814e58e2312e194cb8faee439bb5e56e3f034dd94048e2",
    "Translation-fr": "1b5ce81d2dac68fb27997899d9e092b8281f984baa658c22139d8f2640aec6cc",
    "Translation-de": "adac331fc51f9a00c1b4120b4ac87423be2b1f1615d4f288c7cbc2d5258c0650",
    "Translation-pt_BR": "06883dac5c7394bc37f99a26980e21ca8baec34b364719d0b98793dbfcdf50ff",
    "Translation-ja": "642792836c58facc19a735181fc1bc53ac211fc082ff141377fc6be2d2498259",
    "Translation-pl": "2cbf30bbcc0996040301104f88ab3d950b37d2fc7067cbc6f66e62b5245ba264",
    "Translation-ru": "150a6c5b969a2856ffb16908306ac2328ad61131df343a7e6418ebdc1a86c9bd",
    "Translation-es": "891b4912747533755c5caca42c5dc2365fc7a8b73af88c44485b61ce7fddb740",
    "Translation-zh_CN": "53d04c0b9a75c9519afc6a1919af6d6cfd9012bb7a18bf110a169fd67c6cc4ef",
}
PREFIX = "Translation-"
LANGUAGES = tuple(name.removeprefix(PREFIX) for name in INDICES if name.startswith(PREFIX))
CARD = Card(
    title="Descriptions of Debian 12's packages, in English and ten more languages",
    source="The Debian project and its Description Translation Project (ddtp.debian.org)",
    license="that of each package's own files, all free software; none is stated for a description",
    terms="Fetched for each user, not to be given on",
    archives=tuple(DebianIndex(file=name, sha256=sha256) for name, sha256 in INDICES.items()),
)
PACKAGES, TEXTS = "packages.jsonl", "descriptions-{}.jsonl"


@dataclass(frozen=True)
class Described:
    """A description, by the md5 of its English text. group: names all that may share a text with
    it. section, tags: of the first package that has it."""

    md5: str
    group: str
    section: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """A description in a language. title: its first line."""

    md5: str
    title: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DebianDescriptions(Fetched):
    """What data sets of these descriptions share: one folder of what was read."""

    card: ClassVar[Card] = CARD
    source_name: ClassVar[str] = "debian_descriptions"

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        index = counted("reading the index of packages", _described(archives["Packages"]), "texts")
        described = list(index)
        with (folder / PACKAGES).open("w", encoding="utf-8") as file:
            for one in described:
                file.write(json.dumps(vars(one)) + "\n")
        known = {one.md5 for one in described}
        for language in LANGUAGES:
            texts = _texts(archives[PREFIX + language], language, known)
            texts = counted(f"reading the descriptions in {language}", texts, "texts")
            with (folder / TEXTS.format(language)).open("w", encoding="utf-8") as file:
                for text in texts:
                    file.write(json.dumps(vars(text), ensure_ascii=False) + "\n")

    def described(self) -> list[Described]:
        """All descriptions, in the order of the index of packages."""
        lines = _lines(self.source_folder() / PACKAGES)
        lines = counted("reading the descriptions", lines, "texts")
        return [Described(**{**line, "tags": tuple(line["tags"])}) for line in lines]

    def texts(self, language: str) -> dict[str, Text]:
        """By md5, those that there are in a language."""
        lines = _lines(self.source_folder() / TEXTS.format(language))
        lines = counted(f"reading the descriptions in {language}", lines, "texts")
        return {
            line["md5"]: Text(**{**line, "paragraphs": tuple(line["paragraphs"])}) for line in lines
        }


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _blocks(path: Path) -> Iterator[dict[str, str]]:
    """The blocks of a file of Debian's fields; a field's further lines follow behind newlines."""
    block: dict[str, str] = {}
    name = ""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            line = line.rstrip("\n")
            if not line:
                if block:
                    yield block
                block, name = {}, ""
            elif line[0] in " \t" and name:
                block[name] += "\n" + line[1:]
            else:
                name, _, value = line.partition(":")
                block[name] = value.strip()
    if block:
        yield block


def _described(path: Path) -> Iterator[Described]:
    packages: dict[str, list[dict[str, str]]] = {}
    for block in _blocks(path):
        if "Description-md5" in block and "Package" in block:
            packages.setdefault(block["Description-md5"], []).append(block)
    if not packages:
        raise UserError(f"{path}: no index of packages")
    groups = _Groups()
    for blocks in packages.values():
        for block in blocks:
            groups.join(_source(blocks[0]), _source(block))
    for md5, (first, *_) in packages.items():
        tags = re.split(r",\s+", first.get("Tag", "").strip())
        section = first.get("Section", "").rpartition("/")[2]
        yield Described(
            md5, groups.of(_source(first)), section, tuple(sorted(tag for tag in tags if tag))
        )


def _source(block: Mapping[str, str]) -> str:
    """The name of the source package."""
    return block.get("Source", block["Package"]).split()[0]


class _Groups:
    """Names that belong together, each group named by its least (union-find)."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def of(self, name: str) -> str:
        while (above := self._above.get(name, name)) != name:
            self._above[name] = self._above.get(above, above)
            name = above
        return name

    def join(self, one: str, other: str) -> None:
        least, greater = sorted([self.of(one), self.of(other)])
        self._above[greater] = least


def _texts(path: Path, language: str, known: set[str]) -> Iterator[Text]:
    field = f"Description-{language}"
    for block in _blocks(path):
        md5 = block.get("Description-md5", "")
        if md5 in known and block.get(field):
            title, *lines = block[field].split("\n")
            paragraphs = tuple(_paragraphs(lines))
            yield Text(md5, title.strip(), paragraphs)


def _paragraphs(lines: Sequence[str]) -> Iterator[str]:
    """Lines between ones with only a dot, joined; lines that are set further in stand alone."""
    paragraph: list[str] = []
    for line in [*lines, "."]:
        if line.strip() != ".":
            verbatim = line.startswith(" ")
            paragraph.append(("\n" if verbatim and paragraph else "") + line.strip())
        elif paragraph:
            yield " ".join(paragraph).replace(" \n", "\n")
            paragraph = []
