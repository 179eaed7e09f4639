"""The rated sentences of the VADER study: sentiment in three classes, from four sources."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule
from moe_jax.config.json_files import JsonObject
from moe_jax.data.faults import EMPTY_TEXT, Tally
from moe_jax.data.fetch.archives import Card
from moe_jax.data.fetch.dataset import Fetched
from moe_jax.data.fetch.pip import PipArchive
from moe_jax.data.labelled import Example, LabelledText
from moe_jax.data.store import in_share

CARD = Card(
    title="23,703 rated sentences of four sources",
    source="Hutto and Gilbert, VADER, ICWSM 2014",
    license="MIT",
    archives=(
        PipArchive(
            name="vaderSentiment",
            version="0.5",
            file="vaderSentiment-0.5.zip",
            sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
            sdist=True,
        ),
    ),
)
INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
FILE = "hutto_ICWSM_2014/{}_GroundTruth.txt"
SOURCES = {
    "movies": "movieReviewSnippets",
    "tweets": "tweets",
    "editorials": "nytEditorialSnippets",
    "products": "amazonReviewSnippets",
}
CLASSES = ("negative", "neutral", "positive")
LINE = re.compile(r"(?P<id>\S+)\t(?P<rating>-?[\d.]+)\t(?P<text>.*)")


@dataclass(frozen=True, kw_only=True)
class Sentiment(Fetched, LabelledText):
    """Sentences of movie reviews, tweets, newspaper editorials and product reviews, each with the
    mean rating of 20 people, from -4 to 4.

    neutral: half the width of the middle class: negative below -neutral, positive above it.
    validation_fraction: of the sentences; those of one review or one editorial stay together.
    Domains are the four sources; `rating` is a further column. Hutto and Gilbert (ICWSM 2014), MIT
    license.
    """

    kind_name: ClassVar[str] = "sentiment"
    card: ClassVar[Card] = CARD
    numbers: ClassVar[tuple[str, ...]] = ("rating",)

    sequence_length: int = 64
    neutral: float = 0.5
    validation_fraction: float = 0.1

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not 0 <= self.neutral < 4:
            yield "neutral", "must be at least 0 and below 4"
        if not 0 < self.validation_fraction < 1:
            yield "validation_fraction", "must lie between 0 and 1"

    def class_names(self) -> tuple[str, ...]:
        return CLASSES

    def identity(self) -> JsonObject:
        return {
            **self.origin(),
            "neutral": self.neutral,
            "validation_fraction": self.validation_fraction,
        }

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        (path,) = archives.values()
        with zipfile.ZipFile(path) as outer:
            inner = io.BytesIO(outer.read(INNER))
        with tarfile.open(fileobj=inner) as archive:
            for name in SOURCES.values():
                member = archive.extractfile(FILE.format(name))
                if member is None:
                    raise UserError(f"{path}: {FILE.format(name)} is no file")
                (folder / f"{name}.txt").write_bytes(member.read())

    def examples(self, split: str, tally: Tally) -> Iterator[Example]:
        for domain, name in SOURCES.items():
            file = self.source_folder() / f"{name}.txt"
            if split == "train":  # both splits are read from the same files
                tally.files += 1
            for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
                match = LINE.fullmatch(line)
                text = match["text"].strip() if match else ""
                if match is None or not text:
                    if split == "train":
                        reason = EMPTY_TEXT if match else "lines without a rating"
                        tally.pass_over(reason, f"{file}, line {number}")
                    continue
                # Of one review or editorial, whose number stands before the sentence's, none is
                # in both splits.
                whole = f"{domain} {match['id'].partition('_')[0]}"
                if in_share(whole, self.validation_fraction) != (split == "validation"):
                    continue
                tally.add(text)
                rating = float(match["rating"])
                yield Example(text, CLASSES[self._class(rating)], domain, {"rating": rating})

    def _class(self, rating: float) -> int:
        return 1 + int(rating > self.neutral) - int(rating < -self.neutral)
