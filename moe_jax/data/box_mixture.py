"""Data sets of images with objects in boxes, mixed by weight; classes are those of all, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.data.boxes import box_columns
from moe_jax.data.mixture import Mixed, RowsOfParts
from moe_jax.data.sources import BOXES
from moe_jax.data.types import NO_LABEL, ArraySpec, require_split


@dataclass(frozen=True, kw_only=True)
class BoxMixture(Mixed):
    """Images drawn from several data sets by weight, as DAMEX trains on several at once
    (2311.04894). The label of a part is the image's domain.

    Classes are those of all parts: names that several have are one class. An image is labelled
    with the classes of its own part alone, and a detection of another one is false there, whatever
    the image shows. Each part scales its pixels by its own mean and deviation. All parts have the
    mixture's height and width; a row has room for as many objects as the part with the most asks
    for.
    """

    kind_name: ClassVar[str] = "box_mixture"
    kinds: ClassVar[Mapping[str, type]] = BOXES
    needs: ClassVar[tuple[str, ...]] = ("max_objects",)
    rows_are: ClassVar[str] = "parts are images with objects in boxes"

    parts: tuple[str, ...] = ("digit_scenes: 1",)
    height: int = 64
    width: int = 64

    def shared(self) -> dict[str, Any]:
        return {"height": self.height, "width": self.width}

    def columns(self) -> dict[str, ArraySpec]:
        try:
            most = max(part.dataset.max_objects for part in self.parsed())  # type: ignore[attr-defined]
        except UserError:  # which the check tells
            most = 1
        return box_columns(self.height, self.width, most)

    def class_names(self) -> tuple[str, ...]:
        """Of all parts; () where only the opened data of one of them says its own."""
        try:
            told: list[Any] = [getattr(part.dataset, "class_names", None) for part in self.parsed()]
        except UserError:
            return ()
        return () if None in told else union([method() for method in told])

    def open(self, split: str) -> MixedBoxes:
        require_split(split)
        parts = self.parsed()
        return MixedBoxes(
            [part.dataset.open(split) for part in parts],
            weights=[part.weight for part in parts],
            labels=[part.label for part in parts],
            columns=self.columns(),
            scatter=split != "train",
        )


def union(names: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Each name once, in the order in which they come up."""
    return tuple(dict.fromkeys(name for some in names for name in some))


class MixedBoxes(RowsOfParts):
    """Of data sets of boxes. `Rows` of types.py."""

    tokenizer = None

    def __init__(
        self,
        parts: Sequence[Any],
        weights: Sequence[float],
        labels: Sequence[str],
        columns: Mapping[str, ArraySpec],
        scatter: bool,
    ):
        super().__init__(BoxMixture.kind_name, parts, weights, labels, scatter)
        self.classes, self._columns = union([part.classes for part in parts]), columns
        self._number = [
            np.array([self.classes.index(name) for name in part.classes], np.int32)
            for part in parts
        ]
        self.fingerprint |= {"classes": list(self.classes)}

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        domain, place = self.place_in(index)
        return self._row(domain, self.parts[domain][place])

    def augmented(self, index: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """The row as its own part varies it in training."""
        domain, place = self.place_in(index)
        return self._row(domain, self.parts[domain].augmented(place, random))

    def _row(self, domain: int, row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """With room for as many objects as all parts have, and classes by their place among all."""
        wide = {name: self._columns[name].filled(1)[0] for name in ("boxes", "classes")}
        n = len(row["classes"])
        wide["boxes"][:n] = row["boxes"]
        there = row["classes"] != NO_LABEL
        wide["classes"][:n][there] = self._number[domain][row["classes"][there]]
        return {**row, **wide, "domain": np.full((), domain, np.int32)}
