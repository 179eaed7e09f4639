"""What an expert has that needs nothing of its own, and helpers to write one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import jax
from jaxtyping import Array

from moe_jax.config.fields import Rule
from moe_jax.experts.types import Networks, View
from moe_jax.experts.views import Views
from moe_jax.ops.initializers import fan_in
from moe_jax.routing.types import LAST_TWO, ParamSpec

AXES = {"D": "embed", "F": "mlp"}


def matrices(shape: tuple[int, int, int], axes: str, init_scale: float) -> ParamSpec:
    """(E, in, out): a matrix for each expert, truncated normal of variance init_scale / in.

    axes: what the two sides are, "DF" or "FD"; any other letter is a width of its own.
    """
    init = fan_in(init_scale, batch_axis=0)
    names = ("expert", *(AXES.get(letter) for letter in axes))
    return ParamSpec(shape=shape, init=init, axes=names, matrix=LAST_TWO, decays=True)


def vectors(shape: tuple[int, int], axis: str, value: float = 0.0) -> ParamSpec:
    """(E, n): a vector for each expert, a bias or a scale. axis: "D", "F" or another letter."""
    init = jax.nn.initializers.constant(value)
    names = ("expert", AXES.get(axis))
    return ParamSpec(shape=shape, init=init, axes=names, matrix=None, decays=False)


@dataclass(frozen=True, kw_only=True)
class BaseExpert:
    """The defaults of the Expert protocol. Missing are `params` and `apply`."""

    def check(self) -> Iterator[Rule]:
        yield from ()

    def completed(self, activation: str) -> Self:
        return self

    def params(self, E: int, D: int, F: int, init_scale: float) -> dict[str, ParamSpec]:
        raise NotImplementedError

    def apply(self, x: Array, view: View) -> Array:
        raise NotImplementedError

    def networks(
        self, weights: Mapping[str, Array], backend: str, platform: str | None, tensor: str | None
    ) -> Networks:
        return Views(
            expert=self, weights=dict(weights), backend=backend, platform=platform, tensor=tensor
        )

    def multiplied(self, D: int, F: int) -> int:
        return sum(math.prod(spec.shape) for spec in self._matrices(D, F))

    def hidden(self, D: int, F: int) -> int:
        return sum(spec.shape[-1] for spec in self._matrices(D, F) if spec.axes[-1] != "embed")

    def _matrices(self, D: int, F: int) -> list[ParamSpec]:
        return [spec for spec in self.params(1, D, F, 1.0).values() if spec.matrix is not None]
