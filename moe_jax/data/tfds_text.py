"""Any TFDS data set with text, already prepared in the file format array_record (or parquet)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule
from moe_jax.data.store import resolve_data_dir
from moe_jax.data.text import TextDataset


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

    def told(self) -> str:
        return f"TFDS set {self.name}"

    def identity(self) -> dict[str, Any]:
        builder = self._builder()
        info = (Path(builder.data_path) / "dataset_info.json").read_bytes()
        return {
            "tfds": builder.info.full_name,
            "info_sha256": hashlib.sha256(info).hexdigest(),
            "feature": self.feature,
            "splits": [self.train, self.validation],
        }

    def documents(self, split: str) -> Iterator[str]:
        source = self._source(split)
        # Text of the world may be broken; where it is, replacement characters tell so.
        return (source[i][self.feature].decode("utf-8", "replace") for i in range(len(source)))

    def count(self, split: str) -> int:
        return len(self._source(split))

    def _source(self, split: str) -> Any:
        import tensorflow_datasets as tfds

        builder, wanted = self._builder(), getattr(self, split)
        others = [name for name in builder.info.features if name != self.feature]
        skip = {name: tfds.decode.SkipDecoding() for name in others}  # images, say
        try:
            return builder.as_data_source(wanted, decoders=skip or None)
        except NotImplementedError as error:  # its file format
            found = builder.info.file_format
            raise UserError(self._unprepared(f"is there as {found.value}")) from error
        except (ValueError, KeyError) as error:
            splits = ", ".join(builder.info.splits)
            raise UserError(f"{self.told()} has no split {wanted!r}; it has {splits}") from error

    def _builder(self) -> Any:
        """Reads what is on disk, never the code of a stock set, which may need TensorFlow."""
        import tensorflow_datasets as tfds

        try:
            builder = tfds.core.read_only_builder.builder_from_files(
                self.name, data_dir=str(self._folder())
            )
        except (tfds.core.registered.DatasetNotFoundError, ValueError, OSError) as error:
            raise UserError(self._unprepared("is not prepared") + self._there_is()) from error
        features = sorted(builder.info.features.items())
        texts = [key for key, value in features if isinstance(value, tfds.features.Text)]
        if self.feature not in texts:
            raise UserError(
                f"{self.told()} has no text named {self.feature!r} (data.feature); "
                f"its texts: {', '.join(texts) or 'none'}"
            )
        return builder

    def _folder(self) -> Path:
        return resolve_data_dir(self.tfds_dir or self.data_dir)

    def _unprepared(self, what: str) -> str:
        return (
            f"{self.told()} {what} in {self._folder()}; prepare it where TensorFlow is:\n"
            f"  tfds build {self.name} --file_format=array_record --data_dir={self._folder()}"
        )

    def _there_is(self) -> str:
        """The configs of the set that are there: a set that has some is not found without one."""
        folder = self._folder() / self.name.partition(":")[0]
        names = sorted(child.name for child in folder.glob("[!.]*") if child.is_dir())
        return f"\n{folder} holds {', '.join(names)}" if names else ""
