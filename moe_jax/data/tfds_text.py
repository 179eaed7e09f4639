"""Any TFDS data set with text, already prepared in the file format array_record (or parquet)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moe_jax.config.fields import Rule
from moe_jax.config.json_files import JsonObject
from moe_jax.data.store import resolve_data_dir
from moe_jax.data.text import TextDataset
from moe_jax.data.tfds_set import Examples, PreparedSet


@dataclass(frozen=True, kw_only=True)
class Tfds(TextDataset):
    """A prepared TFDS set: one document an example. It is read without TensorFlow.

    name: as TFDS has it, "imdb_reviews/plain_text:1.0.0". feature: its text. train, validation:
    splits in the syntax of TFDS, "train[:95%]". tfds_dir: the data_dir that it was prepared with;
    None: the same as data_dir.
    """

    kind_name: ClassVar[str] = "tfds"

    name: str = ""
    feature: str = "text"
    train: str = "train"
    validation: str = "validation"
    tfds_dir: str | None = None

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not self.name:
            yield "name", "must name a TFDS data set, such as imdb_reviews/plain_text"

    def description(self) -> str:
        return f"TFDS set {self.name}"

    def identity(self) -> JsonObject:
        return {
            **self.set().identity(),
            "feature": self.feature,
            "splits": [self.train, self.validation],
        }

    def documents(self, split: str) -> Iterator[str]:
        source = self.source(split)
        # Text of the world may be broken; where it is, replacement characters tell so.
        return (source[i][self.feature].decode("utf-8", "replace") for i in range(len(source)))

    def count(self, split: str) -> int:
        return len(self.source(split))

    def source(self, split: str, keep: tuple[str, ...] = ()) -> Examples:
        """The examples with the text and the features to `keep`."""
        return self.set().source(getattr(self, split), (self.feature, *keep))

    def set(self) -> PreparedSet:
        found = PreparedSet(self.name, resolve_data_dir(self.tfds_dir or self.data_dir))
        found.require("Text", self.feature, "text (data.feature)")
        return found
