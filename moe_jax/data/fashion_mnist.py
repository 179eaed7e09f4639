"""Fashion-MNIST, whole: pictures of clothes, fetched from Debian's package of it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule
from moe_jax.config.json_files import JsonObject
from moe_jax.data.fetch import deb
from moe_jax.data.fetch.apt import DebianPackage
from moe_jax.data.fetch.archives import Card
from moe_jax.data.fetch.dataset import FetchedFolder
from moe_jax.data.images import ArrayPictures, Augmentation, ImageDataset

SIDE = 28  # pixels
CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
INSIDE = "usr/share/datasets/fashion-mnist/{}-{}-ubyte.gz"
SPLITS = {"train": "train", "validation": "t10k"}
IDX_BYTES = 0x08  # the type of an idx file's numbers
CARD = Card(
    title="Fashion-MNIST: 60,000 and 10,000 pictures of ten kinds of clothes, 28 x 28 greys",
    source="Xiao, Rasul and Vollgraf, 1708.07747 (Zalando)",
    license="MIT (Expat)",
    archives=(
        DebianPackage(
            name="dataset-fashion-mnist",
            version="0.0~git20200523.55506a9-1",
            file="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
            sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class FashionMnist(FetchedFolder, ImageDataset):
    """60,000 pictures of clothes train, the 10,000 of the published test part validate; 28 x 28
    pixels of 256 greys, ten classes of equal size."""

    kind_name: ClassVar[str] = "fashion_mnist"
    card: ClassVar[Card] = CARD

    height: int = SIDE
    width: int = SIDE
    channels: int = 1
    mean: float = 0.286
    deviation: float = 0.353
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(flip=0.5, crop=2))

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if (self.height, self.width, self.channels) != (SIDE, SIDE, 1):
            yield "height", "the pictures are 28 x 28 pixels of one channel"

    def class_names(self) -> tuple[str, ...]:
        return CLASSES

    def classes(self) -> tuple[str, ...]:
        return CLASSES

    def identity(self) -> JsonObject:
        return self.origin()

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        (path,) = archives.values()
        write_arrays(path, folder)

    def pictures(self, split: str) -> ArrayPictures:
        folder = self.opened_folder()
        images = np.load(folder / f"{split}.images.npy", mmap_mode="r")
        labels = np.load(folder / f"{split}.labels.npy").astype(np.int32)
        return ArrayPictures(images[..., None], labels)


def write_arrays(package: Path, folder: Path) -> None:
    """SPLIT.images.npy and SPLIT.labels.npy of Debian's package."""
    names = {
        (split, part): INSIDE.format(stem, part)
        for split, stem in SPLITS.items()
        for part in ("images-idx3", "labels-idx1")
    }
    files = deb.members(package, tuple(names.values()))
    for split in SPLITS:
        for part, name in (("images-idx3", "images"), ("labels-idx1", "labels")):
            np.save(folder / f"{split}.{name}.npy", read_idx(files[names[split, part]]))


def read_idx(content: bytes) -> np.ndarray:
    """The array of a packed idx file of bytes: two zeros, the type, the number of axes, their sizes
    as big-endian int32, the numbers (LeCun's format of MNIST)."""
    raw = gzip.decompress(content)
    zero, kind, axes = int.from_bytes(raw[:2], "big"), raw[2], raw[3]
    if zero or kind != IDX_BYTES:
        raise UserError("an idx file of bytes begins with 0, 0, 8")
    shape = np.frombuffer(raw, ">i4", axes, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)
