"""Translated texts of your own: two files line by line, tables, and prepared TFDS sets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule
from moe_jax.config.json_files import JsonObject
from moe_jax.config.paths import expanded
from moe_jax.data.faults import Fault, Tally
from moe_jax.data.paired import Pair, PairedText
from moe_jax.data.readers import READERS, read_file, suffix_of
from moe_jax.data.store import in_share, resolve_data_dir, sha256_of
from moe_jax.data.tfds_set import PreparedSet

EMPTY = "empty lines"


@dataclass(frozen=True, kw_only=True)
class LinePairs(PairedText):
    """Two files whose lines belong together, or a table with a column for each language.

    source, target: the files (train.de and train.en); of one table (.tsv, .csv, .jsonl, .parquet)
    `source` names it and `target` is empty. languages: of both, in a table the names of the
    columns. validation_source, validation_target: a set of its own; without it the share
    `validation_fraction` validates, chosen by the hash of the source. Pairs with an empty side are
    passed over and counted.
    """

    kind_name: ClassVar[str] = "line_pairs"

    source: str = ""
    target: str = ""
    languages: tuple[str, str] = ("de", "en")
    validation_source: str | None = None
    validation_target: str = ""
    validation_fraction: float = 0.05

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not self.source:
            yield "source", "must name a file of lines, or a table"
        if len(set(self.languages)) != 2:
            yield "languages", "must be two"
        if not 0 < self.validation_fraction < 1:
            yield "validation_fraction", "must lie between 0 and 1"

    def description(self) -> str:
        return self.source

    def all_languages(self) -> tuple[str, ...]:
        return self.languages

    def identity(self) -> JsonObject:
        names = (self.source, self.target, self.validation_source, self.validation_target)
        files = [_file(name) for name in names if name]
        return {
            "files": [[str(file.name), file.stat().st_size, sha256_of(file)] for file in files],
            "languages": list(self.languages),
            "validation_fraction": self.validation_fraction,
        }

    def pairs(self, split: str, tally: Tally) -> Iterator[Pair]:
        held = split == "validation"
        if self.validation_source is None:
            for pair in self._read(self.source, self.target, Tally() if held else tally):
                if in_share(pair.source, self.validation_fraction) == held:
                    yield pair
        elif held:
            yield from self._read(self.validation_source, self.validation_target, tally)
        else:
            yield from self._read(self.source, self.target, tally)

    def _read(self, source: str, target: str, tally: Tally) -> Iterator[Pair]:
        sides = _lines(source, target) if target else _columns(source, self.languages)
        tally.files += 1 + bool(target)
        for number, (one, other) in enumerate(sides, start=1):
            if one and other:
                tally.add(one)
                tally.add(other)
                yield Pair(one, other, self.languages)
            else:
                tally.pass_over(EMPTY, f"{source}, line {number}")


def _file(name: str) -> Path:
    file = expanded(name)
    if not file.is_file():
        raise UserError(f"data.source: no file {file}")
    return file


def _lines(source: str, target: str) -> Iterator[tuple[str, str]]:
    """Line n of one with line n of the other. UserError where one has more."""
    with _file(source).open(encoding="utf-8") as a, _file(target).open(encoding="utf-8") as b:
        try:
            for number, (one, other) in enumerate(itertools.zip_longest(a, b), start=1):
                if one is None or other is None:
                    short = source if one is None else target
                    raise UserError(f"{short}: it ends before line {number} of the other file")
                yield one.strip(), other.strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{source} or {target}: not UTF-8 ({error})") from error


def _columns(name: str, languages: tuple[str, str]) -> Iterator[tuple[str, str]]:
    file = _file(name)
    if suffix_of(file.name) not in READERS:
        raise UserError(f"{file}: no table ({', '.join(READERS)}); of two files name data.target")
    for (place, one), (_, other) in zip(
        *(read_file(file, language) for language in languages), strict=False
    ):
        for side in (one, other):
            if isinstance(side, Fault):
                what = side.what.replace("data.field", "data.languages")
                raise UserError(f"{file}, {place}: {what}")
        yield str(one).strip(), str(other).strip()


@dataclass(frozen=True, kw_only=True)
class TfdsPairs(PairedText):
    """A prepared TFDS set of translations, such as wmt14_translate/de-en. It is read without
    TensorFlow.

    name, tfds_dir: see data.kind = tfds. languages: its features, from and into. train, validation:
    splits in the syntax of TFDS.
    """

    kind_name: ClassVar[str] = "tfds_pairs"

    name: str = ""
    languages: tuple[str, str] = ("de", "en")
    train: str = "train"
    validation: str = "validation"
    tfds_dir: str | None = None

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not self.name:
            yield "name", "must name a TFDS data set, such as wmt14_translate/de-en"
        if len(set(self.languages)) != 2:
            yield "languages", "must be two"

    def description(self) -> str:
        return f"TFDS set {self.name}"

    def all_languages(self) -> tuple[str, ...]:
        return self.languages

    def _set(self) -> PreparedSet:
        return PreparedSet(self.name, resolve_data_dir(self.tfds_dir or self.data_dir))

    def identity(self) -> JsonObject:
        return {
            **self._set().identity(),
            "languages": list(self.languages),
            "splits": [self.train, self.validation],
        }

    def pairs(self, split: str, tally: Tally) -> Iterator[Pair]:
        found = self._set()
        for language in self.languages:
            found.require("Text", language, "text (data.languages)")
        rows = found.source(getattr(self, split), self.languages)
        for number in range(len(rows)):
            row = rows[number]
            one, other = (row[name].decode("utf-8", "replace").strip() for name in self.languages)
            if one and other:
                tally.add(one)
                tally.add(other)
                yield Pair(one, other, self.languages)
            else:
                tally.pass_over(EMPTY, f"{split}, example {number}")
