"""Texts of several languages, each with its English."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_jax.config.fields import Rule, languages_of, one_of
from moe_jax.config.json_files import JsonObject
from moe_jax.data.debian import ENGLISH
from moe_jax.data.faults import Tally
from moe_jax.data.paired import Pair, PairedText

DIRECTIONS = ("both", "from_english", "to_english")


@dataclass(frozen=True, kw_only=True)
class WithEnglish(PairedText):
    """What such data sets share. A subclass says its `known` languages and their `translations`.

    languages: beside English. direction: from_english, to_english, or both. validation_fraction: of
    what is drawn together, which is in one split only.
    """

    known: ClassVar[tuple[str, ...]]

    languages: tuple[str, ...] = ()
    direction: str = "both"
    validation_fraction: float = 0.05

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if ENGLISH in self.languages:
            yield "languages", "are those beside English"
        else:
            yield from languages_of(self, self.known)
        yield from one_of(self, DIRECTIONS, "direction")
        if not 0 < self.validation_fraction < 1:
            yield "validation_fraction", "must lie between 0 and 1"

    def all_languages(self) -> tuple[str, ...]:
        return (ENGLISH, *self.languages)

    def chosen(self) -> JsonObject:
        """The settings that decide which pairs there are."""
        return {
            "languages": list(self.languages),
            "direction": self.direction,
            "validation_fraction": self.validation_fraction,
        }

    def translations(self, split: str, tally: Tally) -> Iterator[tuple[str, str, str]]:
        """(language, the English text, its translation), each once; counted in `tally`."""
        raise NotImplementedError

    def pairs(self, split: str, tally: Tally) -> Iterator[Pair]:
        for language, english, other in self.translations(split, tally):
            tally.add(english)
            tally.add(other)
            if self.direction != "to_english":
                yield Pair(english, other, (ENGLISH, language))
            if self.direction != "from_english":
                yield Pair(other, english, (language, ENGLISH))
