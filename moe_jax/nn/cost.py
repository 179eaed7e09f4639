"""What a part of a model costs: each kind of layer says it of itself, and sums are the model's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

# (config path, value, parts, what the parts are): the value must be divisible by them.
Division = tuple[str, int, int, str]


@dataclass(frozen=True, kw_only=True)
class _Additive:
    """Numbers that add up field by field."""

    def __add__(self, other: Self) -> Self:
        names = [field.name for field in dataclasses.fields(self)]
        return type(self)(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class Cost(_Additive):
    """Parameters and arithmetic, additive.

    parameters: all. active: those that a token uses, on average. multiplied: weights by which a
    token is multiplied, on average: 6 FLOPs each of a training step (2 forward, 4 backward).
    attended: all other training FLOPs of a token. router: parameters of routers. routed: of
    `multiplied` those of experts that a router chose.
    """

    parameters: float = 0
    active: float = 0
    multiplied: float = 0
    attended: float = 0
    router: float = 0
    routed: float = 0

    @classmethod
    def of_matrices(cls, size: float) -> Cost:
        """Of weights that every token is multiplied by."""
        return cls(parameters=size, active=size, multiplied=size)

    @classmethod
    def of_vectors(cls, size: float) -> Cost:
        """Of scales and biases."""
        return cls(parameters=size, active=size)

    @classmethod
    def of_parameters(cls, parameters: Iterable[tuple[int, bool]]) -> Cost:
        """Of (size, whether it holds matrices) of each."""
        return total(
            cls.of_matrices(size) if is_matrix else cls.of_vectors(size)
            for size, is_matrix in parameters
        )

    def of_some(self, share: float) -> Cost:
        """Where only that share of the tokens takes part."""
        return dataclasses.replace(
            self,
            active=self.active * share,
            multiplied=self.multiplied * share,
            attended=self.attended * share,
            routed=self.routed * share,
        )


def total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, start=Cost())


@dataclass(frozen=True, kw_only=True)
class Here:
    """One layer on one device in one micro-batch, for `Planned`.

    tokens: T of the device. row: S, tokens of a whole row. bytes: of one number of the compute
    type. tensor, sequence: devices along these axes. forward: forward passes, recomputed ones too.
    """

    tokens: float
    row: int
    bytes: int
    tensor: int = 1
    sequence: int = 1
    forward: int = 1
    platform: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Planned(_Additive):
    """Bytes of a layer on one device, additive.

    kept: what the backward pass keeps. products: of it, the outputs of products with weights.
    summed: sums over `tensor` in a forward and a backward pass. gathered: what `tensor` brings
    together. exchanged: what one device has of what `sequence` brings together.
    """

    kept: float = 0.0
    products: float = 0.0
    summed: float = 0.0
    gathered: float = 0.0
    exchanged: float = 0.0
