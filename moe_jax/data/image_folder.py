"""Images in files, a folder a class, and prepared TFDS sets of images (extra `vision`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule
from moe_jax.config.json_files import JsonObject
from moe_jax.config.paths import expanded
from moe_jax.data.images import ImageDataset
from moe_jax.data.rand_augment import PillowImage
from moe_jax.data.store import digest, in_share
from moe_jax.data.tfds_set import Examples, ImagesOfSet

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


def library() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        message = 'images in files need Pillow: pip install "moe_jax[vision]"'
        raise UserError(message) from error
    return Image


def fitted(image: PillowImage, height: int, width: int, channels: int) -> np.ndarray:
    """uint8 (height, width, channels) of a Pillow image: its middle, in the shape that is wanted,
    scaled with antialiasing."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(ImageOps.fit(image, (width, height), library().Resampling.BICUBIC))
    return pixels[..., None] if channels == 1 else pixels


class FilePictures:
    """Images of files, read when they are asked for."""

    def __init__(self, dataset: ImageFolder, files: Sequence[tuple[Path, int]]):
        self._dataset, self._files = dataset, files
        self.labels = [label for _, label in files]

    def __getitem__(self, index: int) -> np.ndarray:
        d, (file, _) = self._dataset, self._files[index]
        try:
            with library().open(file) as image:
                return fitted(image, d.height, d.width, d.channels)
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{file}: cannot be read as an image ({error})") from error


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ImageDataset):
    """Images below `path`, in a folder for each class: path/cat/1.png.

    validation: such a folder of its own; without it the share `validation_fraction` validates,
    chosen by the hash of a file's path below `path`. Files of other suffixes are passed over.
    """

    kind_name: ClassVar[str] = "images"

    path: str = ""
    validation: str | None = None
    validation_fraction: float = 0.1

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not self.path:
            yield "path", "must name a folder with a folder of images for each class"
        if not 0 < self.validation_fraction < 1:
            yield "validation_fraction", "must lie between 0 and 1"

    def description(self) -> str:
        return self.path

    @cached_property
    def _names(self) -> tuple[str, ...]:
        folder = expanded(self.path)
        if not folder.is_dir():
            raise UserError(f"data.path: no folder {folder}")
        names = sorted(child.name for child in folder.iterdir() if child.is_dir())
        names = [name for name in names if not name.startswith(".")]
        if len(names) < 2:
            raise UserError(f"data.path: {folder} has {len(names)} folders; each class needs one")
        return tuple(names)

    def classes(self) -> tuple[str, ...]:
        return self._names

    def identity(self) -> JsonObject:
        stats = [
            (str(file.relative_to(root)), file.stat().st_size)
            for root in self._roots()
            for file, _ in self._files(root)
        ]
        return {"files": digest(stats), "validation_fraction": self.validation_fraction}

    def _roots(self) -> list[Path]:
        return [expanded(path) for path in (self.path, self.validation) if path is not None]

    def _files(self, root: Path) -> list[tuple[Path, int]]:
        found = [
            (file, label)
            for label, name in enumerate(self._names)
            for file in sorted((root / name).rglob("*"))
            if file.suffix.lower() in SUFFIXES and file.is_file()
        ]
        if not found:
            raise UserError(f"{root}: no images ({', '.join(SUFFIXES)}) in folders by class")
        return found

    def pictures(self, split: str) -> FilePictures:
        if self.validation is not None:
            root = expanded(self.path if split == "train" else self.validation)
            return FilePictures(self, self._files(root))
        root = expanded(self.path)
        files = [
            (file, label)
            for file, label in self._files(root)
            if in_share(str(file.relative_to(root)), self.validation_fraction)
            == (split == "validation")
        ]
        return FilePictures(self, files)


class SetPictures:
    """Images of a prepared TFDS set."""

    def __init__(self, dataset: TfdsImages, source: Examples):
        self._dataset, self._source = dataset, source
        self.labels = [int(source[i][dataset.label]) for i in range(len(source))]

    def __getitem__(self, index: int) -> np.ndarray:
        d = self._dataset
        pixels = self._source[index][d.feature]
        image = library().fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        return fitted(image, d.height, d.width, d.channels)


@dataclass(frozen=True, kw_only=True)
class TfdsImages(ImagesOfSet, ImageDataset):
    """A prepared TFDS set with an image and a class label: mnist, cifar10, cifar100, imagenet2012.

    label: the feature of the class.
    """

    kind_name: ClassVar[str] = "tfds_images"
    example: ClassVar[str] = "cifar10"

    label: str = "label"

    def classes(self) -> tuple[str, ...]:
        found = self.found
        found.require("Image", self.feature, "image (data.feature)")
        return tuple(found.class_names(self.label))

    def pictures(self, split: str) -> SetPictures:
        self.classes()  # the features are there
        source = self.found.source(getattr(self, split), (self.feature, self.label))
        return SetPictures(self, source)
