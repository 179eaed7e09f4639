"""Labelled texts in files: JSON lines, tables, Parquet and Arrow with a text and a label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moe_jax.config.fields import Rule
from moe_jax.config.json_files import JsonObject
from moe_jax.data.faults import EMPTY_FILE, EMPTY_TEXT, Fault, Tally
from moe_jax.data.folder import Folder
from moe_jax.data.labelled import Example, LabelledText
from moe_jax.data.readers import READERS, LabelField, read_file
from moe_jax.data.store import in_share
from moe_jax.data.tfds_text import Tfds

ROWS = tuple(suffix for suffix in READERS if suffix != ".txt")
ALL = "all"  # the one domain where none is named


@dataclass(frozen=True, kw_only=True)
class LabelledFolder(LabelledText, Folder):
    """The rows of the files below `path` that have a text and a label, as `folder` reads them.

    label: the field of the class, a name or a whole number. domain: a field that says where a text
    is from; None: it is not known. Classes are what the files name, numbers by their size.
    labels: names of which a text may have several, for task.kind = tagging: the field then has them
    with commas between, "red, round".
    """

    kind_name: ClassVar[str] = "labelled"

    sequence_length: int = 128
    suffixes: tuple[str, ...] = ROWS
    label: str = "label"
    labels: tuple[str, ...] = ()
    domain: str | None = None

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not self.label:
            yield "label", "must name the field of the class"

    def identity(self) -> JsonObject:
        names = {"labels": list(self.labels)} if self.labels else {}
        return {**super().identity(), "label": self.label, "domain": self.domain, **names}

    def class_names(self) -> tuple[str, ...]:
        return self.labels

    def several_labels(self) -> int:
        return len(self.labels)

    def examples(self, split: str, tally: Tally) -> Iterator[Example]:
        files, _ = self._files(split)
        own = self.validation is not None
        for example in self._rows(files, tally if own or split == "train" else Tally()):
            if own or in_share(example.text, self.validation_fraction) == (split == "validation"):
                yield example

    def _rows(self, files: list[Path], tally: Tally) -> Iterator[Example]:
        fields = (self.field, LabelField(self.label), LabelField(self.domain or self.label))
        for file in files:
            tally.files += 1
            found = False
            columns = [read_file(file, field) for field in fields]
            for (place, text), (_, label), (_, domain) in zip(*columns, strict=False):
                found = True
                at = f"{file}, {place}" if place else str(file)
                fault = next((x for x in (text, label, domain) if isinstance(x, Fault)), None)
                if fault is not None:
                    tally.refuse_or_pass(fault, file, place, self.on_error)
                elif not text or not label:
                    tally.pass_over(EMPTY_TEXT if not text else "empty labels", at)
                else:
                    tally.add(str(text))
                    yield Example(str(text), str(label), str(domain) if self.domain else ALL, {})
            if not found:
                tally.pass_over(EMPTY_FILE, str(file))


@dataclass(frozen=True, kw_only=True)
class LabelledTfds(LabelledText, Tfds):
    """A prepared TFDS set with a text and a class label, such as imdb_reviews or ag_news_subset.

    label: the feature of the class, of TFDS' type ClassLabel.
    """

    kind_name: ClassVar[str] = "labelled_tfds"

    sequence_length: int = 256
    validation: str = "test"
    label: str = "label"

    def identity(self) -> JsonObject:
        return {**super().identity(), "label": self.label}

    def examples(self, split: str, tally: Tally) -> Iterator[Example]:
        names = self.set().class_names(self.label)
        source = self.source(split, keep=(self.label,))
        for number in range(len(source)):
            row = source[number]
            text = row[self.feature].decode("utf-8", "replace")
            if not text:
                tally.pass_over(EMPTY_TEXT, f"{split}, example {number}")
                continue
            tally.add(text)
            yield Example(text, names[int(row[self.label])], ALL, {})
