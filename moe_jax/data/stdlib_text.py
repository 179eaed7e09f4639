"""The text of the running Python's standard library: real text that needs no download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moe_jax.config.json_files import JsonObject
from moe_jax.data.progress import Reporter
from moe_jax.data.stdlib_documents import (
    CONFIG,
    NAME,
    VERSION,
    documents_of_stdlib,
    split_by_package,
)
from moe_jax.data.store import build_once, resolve_data_dir
from moe_jax.data.text import TextDataset
from moe_jax.data.tfds_set import Examples


@dataclass(frozen=True, kw_only=True)
class StdlibText(TextDataset):
    """The source of the running Python's standard library (about 10 MB), split by package.

    The documents are a TFDS data set, ``stdlib_text/python_3.11.7`` for that Python.
    """

    kind_name: ClassVar[str] = "stdlib_text"

    def identity(self) -> JsonObject:
        return {"tfds": f"{NAME}/{CONFIG}/{VERSION}"}

    def documents(self, split: str) -> Iterator[str]:
        return (row["text"].decode("utf-8") for row in self._source(split))

    def count(self, split: str) -> int:
        return len(self._source(split))

    def prepare_source(self, reporter: Reporter) -> None:
        if self._tfds_folder().exists():
            return
        from moe_jax.data.stdlib_builder import build_stdlib_text

        reporter.stage("reading the standard library")
        splits = split_by_package(documents_of_stdlib())
        reporter.stage("writing the TFDS data set", sum(map(len, splits.values())))

        def write(folder: Path) -> None:
            build_stdlib_text(folder, splits, reporter.advance)

        build_once(self._tfds_folder(), write)

    def stored_in(self) -> tuple[Path, ...]:
        return (self._tfds_folder(), *super().stored_in())

    def _source(self, split: str) -> Examples:
        import tensorflow_datasets as tfds  # here: other datasets and --help do without

        return tfds.builder_from_directory(self._tfds_folder()).as_data_source(split)

    def _tfds_folder(self) -> Path:
        return resolve_data_dir(self.data_dir) / self.identity()["tfds"]
