"""What goes into a model and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, PyTree

from moe_jax.nn.context import LayerReport
from moe_jax.nn.depth import DepthReport
from moe_jax.nn.ensemble import AnyPredictions
from moe_jax.nn.predictions import ClassLogits, GivenLogits, LabelLogits, Predictions
from moe_jax.routing.types import RouterState

Cache = Mapping[str, PyTree[Array]]  # of the mixers, by stack, leaves (layers of the stack, ...)
RouterStates = Mapping[str, RouterState]  # by stack too, with the same leading axis


@dataclass(frozen=True)
class Gives:
    """What a model is to give of a row; a head fits one of these."""

    classes: int | None = None

    def floats(self, io: IO) -> int:
        """Numbers a row."""
        raise NotImplementedError


@dataclass(frozen=True)
class NextId(Gives):
    """The next id at each place of a row of text."""


@dataclass(frozen=True)
class RowClass(Gives):
    """One of the classes for each row."""

    def floats(self, io: IO) -> int:
        return self.classes or 0


@dataclass(frozen=True)
class RowLabels(Gives):
    """For each row, which of the labels it has."""

    def floats(self, io: IO) -> int:
        return self.classes or 0


@dataclass(frozen=True)
class PixelClass(Gives):
    """One of the classes for each pixel of an image."""

    def floats(self, io: IO) -> int:
        height, width, _ = io.image or (0, 0, 0)
        return (self.classes or 0) * height * width


@dataclass(frozen=True)
class Targets(Gives):
    """Several numbers for each row, by name: the logits of binary targets, then real ones.
    uncertain: with a learned variance of each target."""

    binary: tuple[str, ...] = ()
    real: tuple[str, ...] = ()
    uncertain: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return self.binary + self.real

    def floats(self, io: IO) -> int:
        return len(self.names)


@dataclass(frozen=True)
class ObjectBoxes(Gives):
    """The objects of an image, each one of the classes in a box. objects: so many predictions that
    a loss needs at least."""

    objects: int = 1

    def floats(self, io: IO) -> int:
        return ((self.classes or 0) + 4) * self.objects


@dataclass(frozen=True, kw_only=True)
class IO:
    """What goes into a model and what it is to give, as the task and the data say it.

    length: tokens of a row of text; None: no text. source: of the text that it is a translation of;
    None: of nothing. image: height, width and channels; None: no image. table: categories and
    numbers of a row of a table; None: no table. gives: by default one of `classes` for each row,
    or, without classes, the next id at each place. classes: of what it gives.
    """

    length: int | None = None
    source: int | None = None
    image: tuple[int, int, int] | None = None
    table: tuple[int, int] | None = None
    classes: int | None = None
    gives: Gives | None = None

    def __post_init__(self) -> None:
        usual = NextId() if self.classes is None else RowClass(self.classes)
        gives = self.gives or usual
        object.__setattr__(self, "gives", gives)
        object.__setattr__(self, "classes", gives.classes)

    @property
    def floats(self) -> int:
        """Numbers that it gives of a row, but for next ids."""
        return self.gives.floats(self) if self.gives else 0

    @property
    def predicts_next(self) -> bool:
        return isinstance(self.gives, NextId)


def of_rows(gives: Gives | None, logits_BC: Float[Array, "B C"]) -> ClassLogits | LabelLogits:
    """The predictions of a head over rows."""
    kind = LabelLogits if isinstance(gives, RowLabels) else ClassLogits
    return kind(logits_BC=logits_BC)


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What stands before and behind the layers: parameters, and those of them that are multiplied
    with each token of a row (in the mean), as a head is; a table that is looked up is not."""

    parameters: int
    multiplied: float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Output:
    """What a model gives for a batch.

    predictions: as the task wants them (nn/predictions.py); None: before they are made. report:
    leaves (L, G, ...) over the sparse layers; None in a dense model. depth: leaves (L, B) over the
    layers in which some tokens take part; None without any. cache: of a model that is asked token
    by token.
    """

    predictions: AnyPredictions | None
    report: LayerReport | None
    depth: DepthReport | None = None
    cache: Cache | None = None

    @property
    def logits_BSV(self) -> Float[Array, "B S V"]:
        """All logits over the vocabulary, float32."""
        assert isinstance(self.predictions, Predictions | GivenLogits), "of a token's next one"
        return self.predictions.logits_BSV
