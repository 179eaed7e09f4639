"""What an expert is: its parameters, its formula, and what it costs.

An expert is written once, for tokens of one expert; the three views in which tokens reach experts
(buffers of slots, sorted rows, every expert on every token) are made from that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol, Self, runtime_checkable

from jaxtyping import Array

from moe_jax.config.fields import Rule
from moe_jax.routing.types import ParamSpec


@runtime_checkable
class Networks(Protocol):
    """The expert networks of one device on buffers; `ops.expert_ffn.ExpertWeights` is the usual
    one. Outputs have x's type."""

    def slots(self, x_ECD: Array) -> Array:
        """(E, C, D) -> (E, C, D): every expert on its own slots."""
        ...

    def rows(self, x_RD: Array, sizes_E: Array, expected: int | None = None) -> Array:
        """(R, D) -> (R, D), rows sorted by expert; rows past sum(sizes) give zeros. expected: how
        many there are under an even load; None: R."""
        ...

    def all(self, x_TD: Array) -> Array:
        """(T, D) -> (T, E, D): every expert on every token."""
        ...


class View(Protocol):
    """Tokens of one of the three views, and the parameters of all experts by name."""

    def times(self, x: Array, name: str) -> Array:
        """x W: each token by the matrix (E, in, out) of its expert, summed in float32, of x's
        type."""
        ...

    def vector(self, name: str) -> Array:
        """Each token's expert's vector (E, n), to be added to or multiplied with what `times`
        gives; float32."""
        ...

    def once(self, value: Array) -> Array:
        """Where the hidden width F is split over devices their outputs are added up: what is added
        to an output must come from one of them. value on the first, zeros on the others."""
        ...


@runtime_checkable
class Expert(Protocol):
    """A frozen dataclass whose fields are its config; no Flax, no collective. `experts.base` has
    defaults of all but `params` and `apply`.

    D: width of what an expert reads and gives. F: its hidden width. E: number of experts.
    """

    def check(self) -> Iterator[Rule]: ...

    def completed(self, activation: str) -> Self:
        """With the model's activation (a key of ops.expert_ffn.ACTIVATIONS) where it has none of
        its own."""
        ...

    def params(self, E: int, D: int, F: int, init_scale: float) -> dict[str, ParamSpec]:
        """Of all experts: shapes (E, ...), logical axes ("expert", ...). An axis of the width D is
        "embed" (split over fsdp, gathered before use), one of F is "mlp" (split over tensor), any
        other None."""
        ...

    def apply(self, x: Array, view: View) -> Array:
        """The formula, on tokens (..., D) of any view."""
        ...

    def networks(
        self, weights: Mapping[str, Array], backend: str, platform: str | None, tensor: str | None
    ) -> Networks:
        """`apply` in all three views. weights: this device's experts and its part of F, matrices
        in the type of x, vectors in float32. backend, platform: see ops.expert_ffn.row_backend.
        tensor: the mesh axis over which F is split, inside a shard_map."""
        ...

    def multiplied(self, D: int, F: int) -> int:
        """Matrix parameters of one expert by which a token is multiplied: its FLOPs are 2 of each
        forward and 4 backward."""
        ...

    def hidden(self, D: int, F: int) -> int:
        """Numbers of a token that the backward pass of one expert keeps, without input and
        output."""
        ...


def sizes_of(specs: Mapping[str, ParamSpec]) -> int:
    """Parameters in all."""
    return sum(math.prod(spec.shape) for spec in specs.values())
