"""Descriptions of software packages and their translations, ten languages with English."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_jax.config.json_files import JsonObject
from moe_jax.data.debian import (
    ENGLISH,
    LANGUAGES,
    DebianDescriptions,
    Described,
    Text,
)
from moe_jax.data.faults import Tally
from moe_jax.data.store import in_share
from moe_jax.data.with_english import WithEnglish

OTHERS = tuple(language for language in LANGUAGES if language != ENGLISH)
READING = 1  # raised when the same descriptions give other pairs


@dataclass(frozen=True, kw_only=True)
class PackageDescriptions(DebianDescriptions, WithEnglish):
    """Paragraphs and titles of package descriptions with their translations, from 65,000 (Italian)
    down to 1,700 (Chinese): many to one and one to many, as GShard's M4 (2006.16668).

    languages: beside English; it, da, fr, de, pt_BR, ja, pl, ru, es, zh_CN. direction:
    from_english, to_english, or both. titles: the first lines too. validation_fraction: of the
    groups of source packages that share a description. Descriptions whose paragraphs differ in
    number are left out, and paragraphs that are the same in both languages. A pair comes once,
    and no English paragraph of the training split is in the validation split.
    """

    kind_name: ClassVar[str] = "package_descriptions"
    known: ClassVar[tuple[str, ...]] = OTHERS

    languages: tuple[str, ...] = OTHERS
    titles: bool = True

    def identity(self) -> JsonObject:
        return {**self.origin(), "pairs": READING, **self.chosen(), "titles": self.titles}

    def translations(self, split: str, tally: Tally) -> Iterator[tuple[str, str, str]]:
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
                yield language, source, target

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
                    yield source, target

    def _parts(self, text: Text) -> tuple[str, ...]:
        return (text.title, *text.paragraphs) if self.titles else text.paragraphs
