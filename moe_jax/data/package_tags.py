"""Tags of software packages by their descriptions: several for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moe_jax.config.fields import Rule, at_least
from moe_jax.config.json_files import Json, JsonObject
from moe_jax.data.debian import ENGLISH, DebianDescriptions, Described
from moe_jax.data.faults import Tally
from moe_jax.data.labelled import BETWEEN, Example, LabelledText
from moe_jax.data.package_sections import whole
from moe_jax.data.progress import Reporter
from moe_jax.data.store import in_share


@dataclass(frozen=True, kw_only=True)
class PackageTags(DebianDescriptions, LabelledText):
    """English descriptions of packages that Debian has tagged ("role::program",
    "interface::graphical", ...), about 29,000, each with all of its tags.

    tags: so many, the most frequent ones of all packages. validation_fraction: of the groups of
    source packages that share a description.
    """

    kind_name: ClassVar[str] = "package_tags"

    sequence_length: int = 128
    tags: int = 100
    validation_fraction: float = 0.2

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 2, "tags")
        if not 0 < self.validation_fraction < 1:
            yield "validation_fraction", "must lie between 0 and 1"

    def identity(self) -> JsonObject:
        return {
            **self.origin(),
            "tags": self.tags,
            "validation_fraction": self.validation_fraction,
        }

    def several_labels(self) -> int:
        return self.tags

    def examples(self, split: str, tally: Tally) -> Iterator[Example]:
        texts = self.texts(ENGLISH)
        tally.files += split == "train"  # both splits are read from the same file
        for one in self.described():
            held = in_share(one.group, self.validation_fraction)
            if one.tags and one.md5 in texts and held == (split == "validation"):
                text = whole(texts[one.md5])
                tally.add(text)
                yield Example(text, f"{BETWEEN} ".join(one.tags), ENGLISH, {})

    def write(self, folder: Path, identity: Mapping[str, Json], reporter: Reporter) -> None:
        self.write_examples(folder, identity, reporter, frequent(self.described(), self.tags))


def frequent(described: Sequence[Described], count: int) -> tuple[str, ...]:
    """The most frequent tags, by name where they are equally frequent."""
    counts = Counter(tag for one in described for tag in one.tags)
    return tuple(sorted(counts, key=lambda tag: (-counts[tag], tag))[:count])
