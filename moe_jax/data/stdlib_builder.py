"""Writes the text of the standard library as a TFDS data set, without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from moe_jax.data.stdlib_documents import CONFIG, NAME, VERSION, Document

Splits = Mapping[str, Sequence[Document]]


class StdlibTextBuilder(tfds.core.GeneratorBasedBuilder):
    """TFDS data set `stdlib_text`. Its metadata lists path, bytes and sha256 of every file."""

    name = NAME
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS: ClassVar[list] = [tfds.core.BuilderConfig(name=CONFIG)]

    def __init__(self, *, documents: Splits, advance: Callable[[int], None], **options: Any):
        self._documents = documents
        self._advance = advance
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        files = {
            split: [[file.path, file.size, file.sha256] for file in documents]
            for split, documents in self._documents.items()
        }
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="The source of Python's standard library, split by top-level module.",
            features=tfds.features.FeaturesDict({"text": text, "path": text, "package": text}),
            metadata=tfds.core.MetadataDict(columns=["path", "bytes", "sha256"], files=files),
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[str, dict]]]:
        return {split: self._generate_examples(files) for split, files in self._documents.items()}

    def _generate_examples(self, files: Sequence[Document]) -> Iterator[tuple[str, dict]]:
        for file in files:
            self._advance(1)
            yield file.path, {"text": file.text, "path": file.path, "package": file.package}


def build_stdlib_text(folder: Path, splits: Splits, advance: Callable[[int], None]) -> None:
    """Fills `folder` with the data set: what TFDS keeps in NAME/CONFIG/VERSION."""
    tfds.disable_progress_bar()
    # TFDS prints where it works, which is not where the data will be.
    output = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory(dir=folder) as data_dir, output:
        builder = StdlibTextBuilder(
            documents=splits,
            advance=advance,
            data_dir=data_dir,
            file_format="array_record",  # the default, tfrecord, needs TensorFlow
        )
        builder.download_and_prepare()
        for file in Path(builder.data_dir).iterdir():
            file.rename(folder / file.name)
