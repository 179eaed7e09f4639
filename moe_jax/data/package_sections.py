"""What a software package is about, by its description: 26 sections of Debian, in 11 languages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_jax.config.fields import Rule, languages_of
from moe_jax.config.json_files import JsonObject
from moe_jax.data.debian import ENGLISH, LANGUAGES, DebianDescriptions, Text
from moe_jax.data.faults import Tally
from moe_jax.data.labelled import Example, LabelledText
from moe_jax.data.store import in_share

# Sections that name a topic; the others (libs, python, doc ...) say what a package is made of.
TOPICS = (
    "admin", "comm", "database", "editors", "education", "electronics", "fonts", "games", "gnome",
    "graphics", "hamradio", "kde", "kernel", "localization", "mail", "math", "net", "science",
    "shells", "sound", "tex", "text", "vcs", "video", "web", "x11",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PackageSections(DebianDescriptions, LabelledText):
    """Descriptions of packages whose section is one of 26 topics: title and paragraphs. Domains are
    the languages.

    languages: in which descriptions are read; en, it, da, fr, de, pt_BR, ja, pl, ru, es, zh_CN. Not
    all are translated into each. validation_fraction: of the source packages; all descriptions of
    one, in all languages, are in the same split.
    """

    kind_name: ClassVar[str] = "package_sections"

    sequence_length: int = 128
    languages: tuple[str, ...] = (ENGLISH,)
    validation_fraction: float = 0.2

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from languages_of(self, LANGUAGES)
        if not 0 < self.validation_fraction < 1:
            yield "validation_fraction", "must lie between 0 and 1"

    def class_names(self) -> tuple[str, ...]:
        return TOPICS

    def identity(self) -> JsonObject:
        return {
            **self.origin(),
            "languages": list(self.languages),
            "validation_fraction": self.validation_fraction,
        }

    def examples(self, split: str, tally: Tally) -> Iterator[Example]:
        chosen = [
            one
            for one in self.described()
            if one.section in TOPICS
            and in_share(one.group, self.validation_fraction) == (split == "validation")
        ]
        for language in self.languages:
            texts = self.texts(language)
            tally.files += split == "train"  # both splits are read from the same files
            for one in chosen:
                if one.md5 in texts:
                    text = whole(texts[one.md5])
                    tally.add(text)
                    yield Example(text, one.section, language, {})


def whole(text: Text) -> str:
    """The description as one text."""
    return "\n".join([text.title, *text.paragraphs])
