"""A TFDS set that is prepared, read without TensorFlow."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule
from moe_jax.config.json_files import JsonObject
from moe_jax.data.store import resolve_data_dir

Examples = Sequence[Mapping[str, Any]]  # of TFDS: the features by name


@dataclass(frozen=True, kw_only=True)
class ImagesOfSet:
    """What data sets of images share that are a prepared TFDS set. It is read without TensorFlow.

    name, tfds_dir: see data.kind = tfds. feature: of the image. train, validation: splits in the
    syntax of TFDS.
    """

    example: ClassVar[str]  # the name of one, for messages

    name: str = ""
    feature: str = "image"
    train: str = "train"
    validation: str = "test"
    tfds_dir: str | None = None

    def check(self) -> Iterator[Rule]:
        yield from super().check()  # type: ignore[misc]  # of the kind of images that it is
        if not self.name:
            yield "name", f"must name a TFDS data set, such as {self.example}"

    def description(self) -> str:
        return f"TFDS set {self.name}"

    @cached_property
    def found(self) -> PreparedSet:
        return PreparedSet(self.name, resolve_data_dir(self.tfds_dir))

    def identity(self) -> JsonObject:
        return {**self.found.identity(), "splits": [self.train, self.validation]}


@dataclass(frozen=True)
class PreparedSet:
    """A set in the file format array_record (or parquet), in a data_dir of TFDS."""

    name: str
    folder: Path

    def description(self) -> str:
        return f"TFDS set {self.name}"

    @cached_property
    def builder(self) -> Any:
        """Reads what is on disk, never the code of a stock set, which may need TensorFlow."""
        import tensorflow_datasets as tfds

        try:
            return tfds.core.read_only_builder.builder_from_files(
                self.name, data_dir=str(self.folder)
            )
        except (tfds.core.registered.DatasetNotFoundError, ValueError, OSError) as error:
            raise UserError(self._unprepared("is not prepared") + self._there_is()) from error

    def identity(self) -> JsonObject:
        info = (Path(self.builder.data_path) / "dataset_info.json").read_bytes()
        return {
            "tfds": self.builder.info.full_name,
            "info_sha256": hashlib.sha256(info).hexdigest(),
        }

    def features(self, kind: str) -> list[str]:
        """Names of the features of a class of tfds.features, in order."""
        import tensorflow_datasets as tfds

        wanted = getattr(tfds.features, kind)
        features = sorted(self.builder.info.features.items())
        return [name for name, value in features if isinstance(value, wanted)]

    def require(self, kind: str, name: str, asked: str) -> None:
        """UserError where no feature `name` of that kind is there. asked: "text (data.feature)"."""
        known = self.features(kind)
        if name not in known:
            what, _, setting = asked.partition(" ")
            raise UserError(
                f"{self.description()} has no {what} named {name!r} {setting}; "
                f"its {what}s: {', '.join(known) or 'none'}"
            )

    def class_names(self, label: str) -> list[str]:
        self.require("ClassLabel", label, "label (data.label)")
        return list(self.builder.info.features[label].names)

    def source(self, split: str, keep: Collection[str]) -> Examples:
        """The examples of a split, with these features."""
        import tensorflow_datasets as tfds

        features = self.builder.info.features.items()
        others = [name for name, kind in features if name not in keep and not _is_nested(kind)]
        skip = {name: tfds.decode.SkipDecoding() for name in others}  # images, say
        try:
            return self.builder.as_data_source(split, decoders=skip or None)
        except NotImplementedError as error:  # its file format
            found = self.builder.info.file_format
            raise UserError(self._unprepared(f"is there as {found.value}")) from error
        except (ValueError, KeyError) as error:
            splits = ", ".join(self.builder.info.splits)
            raise UserError(
                f"{self.description()} has no split {split!r}; it has {splits}"
            ) from error

    def _unprepared(self, what: str) -> str:
        return (
            f"{self.description()} {what} in {self.folder}; prepare it where TensorFlow is:\n"
            f"  tfds build {self.name} --file_format=array_record --data_dir={self.folder}"
        )

    def _there_is(self) -> str:
        """The configs of the set that are there: a set that has some is not found without one."""
        folder = self.folder / self.name.partition(":")[0]
        names = sorted(child.name for child in folder.glob("[!.]*") if child.is_dir())
        return f"\n{folder} holds {', '.join(names)}" if names else ""


def _is_nested(feature: Any) -> bool:
    """Whether it has features of its own, none of which can be left undecoded as a whole."""
    import tensorflow_datasets as tfds

    kind = tfds.features.FeaturesDict
    return isinstance(feature, kind) or isinstance(getattr(feature, "feature", None), kind)
