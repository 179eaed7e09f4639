"""Descriptions of software packages and their translations, ten languages with English."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_jax.config.fields import Rule, one_of
from moe_jax.config.json_files import JsonObject
from moe_jax.data.debian import (
    ENGLISH,
    LANGUAGES,
    DebianDescriptions,
    Described,
    Text,
    unknown_languages,
)
from moe_jax.data.faults import Tally
from moe_jax.data.paired import Pair, PairedText
from moe_jax.data.store import in_share

DIRECTIONS = ("both", "from_english", "to_english")
READING = 1  # raised when the same descriptions give other pairs


@dataclass(frozen=True, kw_only=True)
class PackageDescriptions(DebianDescriptions, PairedText):
    """Paragraphs and titles of package descriptions with their translations, from 65,000 (Italian)
    down to 1,700 (Chinese): many to one and one to many, as GShard's M4 (2006.16668).

    languages: beside English; it, da, fr, de, pt_BR, ja, pl, ru, es, zh_CN. direction:
    from_english, to_english, or both. titles: the first lines too. validation_fraction: of the
    groups of source packages that share a description. Descriptions whose paragraphs differ in
    number are left out, and paragraphs that are the same in both languages. A pair comes once,
    and no English paragraph of the training split is in the validation split.
    """

    kind_name: ClassVar[str] = "package_descriptions"

    languages: tuple[str, ...] = tuple(language for language in LANGUAGES if language != ENGLISH)
    direction: str = "both"
    titles: bool = True
    validation_fraction: float = 0.05

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if rule := unknown_languages(self.languages):
            yield "languages", rule
        elif ENGLISH in self.languages:
            yield "languages", "are those beside English"
        yield from one_of(self, DIRECTIONS, "direction")
        if not 0 < self.validation_fraction < 1:
            yield "validation_fraction", "must lie between 0 and 1"

    def all_languages(self) -> tuple[str, ...]:
        return (ENGLISH, *self.languages)

    def identity(self) -> JsonObject:
        return {
            **self.origin(),
            "pairs": READING,
            "languages": list(self.languages),
            "direction": self.direction,
            "titles": self.titles,
            "validation_fraction": self.validation_fraction,
        }

    def pairs(self, split: str, tally: Tally) -> Iterator[Pair]:
        english, described = self.texts(ENGLISH), self.described()
        held = {one.md5 for one in described if in_share(one.group, self.validation_fraction)}
        trained: set[str] = set()
        if split != "train":  # what no validation pair may repeat
            for one in described:
                if one.md5 not in held and one.md5 in english:
                    trained.update(self._parts(english[one.md5]))
        for language in self.languages:
            tally.files += split == "train"  # both splits are read from the same files
            chosen = [one for one in described if (one.md5 in held) == (split != "train")]
            for source, target in self._of(language, chosen, english, trained, tally):
                if self.direction != "to_english":
                    yield Pair(source, target, (ENGLISH, language))
                if self.direction != "from_english":
                    yield Pair(target, source, (language, ENGLISH))

    def _of(
        self,
        language: str,
        chosen: list[Described],
        english: dict[str, Text],
        trained: set[str],
        tally: Tally,
    ) -> Iterator[tuple[str, str]]:
        """Each English paragraph with its translation, once."""
        texts, seen = self.texts(language), set(trained)
        for one in chosen:
            if one.md5 not in texts or one.md5 not in english:
                continue
            ours, theirs = english[one.md5], texts[one.md5]
            if len(ours.paragraphs) != len(theirs.paragraphs):
                tally.pass_over("descriptions of another number of paragraphs", one.md5)
                continue
            for source, target in zip(self._parts(ours), self._parts(theirs), strict=True):
                if source not in seen and source and target and source != target:
                    seen.add(source)
                    tally.add(source)
                    tally.add(target)
                    yield source, target

    def _parts(self, text: Text) -> tuple[str, ...]:
        return (text.title, *text.paragraphs) if self.titles else text.paragraphs
