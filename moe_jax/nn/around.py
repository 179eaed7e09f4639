"""What stands around the routed experts of a sparse layer, and beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import jax
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule
from moe_jax.nn.cost import Cost, Division, Here, Planned
from moe_jax.nn.norm import rms_norm
from moe_jax.routing.types import ParamSpec

Params = Mapping[str, Array]


@runtime_checkable
class Around(Protocol):
    """y = outward(experts(inward(x))) + beside(x). A frozen dataclass; no Flax, no collective of
    its own (sharded parameters are the compiler's). `BaseAround` has defaults of all.

    Routers and undispatched experts see x itself. Several stand one in the other.
    """

    def check(self) -> Iterator[Rule]: ...

    def completed(self, activation: str) -> Self:
        """With the model's activation where it has none of its own."""
        ...

    def width(self, D: int) -> int:
        """Of what goes further in, for tokens of width D."""
        ...

    def params(self, D: int, init_scale: float) -> dict[str, ParamSpec]: ...

    def inward(self, params: Params, x: Float[Array, "B S D"]) -> Float[Array, "B S L"]: ...

    def outward(self, params: Params, y: Float[Array, "B S L"]) -> Float[Array, "B S D"]: ...

    def beside(self, params: Params, x: Float[Array, "B S D"]) -> Float[Array, "B S D"] | None:
        """What is added to the output; None: nothing."""
        ...

    def cost(self, D: int) -> Cost: ...

    def planned(self, D: int, here: Here) -> Planned: ...

    def divisions(self, sizes: Mapping[str, int]) -> Iterator[Division]:
        """What a mesh of these sizes must divide."""
        ...


@dataclass(frozen=True, kw_only=True)
class BaseAround:
    """Nothing: the defaults of `Around`."""

    def check(self) -> Iterator[Rule]:
        yield from ()

    def completed(self, activation: str) -> Self:
        return self

    def width(self, D: int) -> int:
        return D

    def params(self, D: int, init_scale: float) -> dict[str, ParamSpec]:
        return {}

    def inward(self, params: Params, x: Float[Array, "B S D"]) -> Float[Array, "B S L"]:
        return x

    def outward(self, params: Params, y: Float[Array, "B S L"]) -> Float[Array, "B S D"]:
        return y

    def beside(self, params: Params, x: Float[Array, "B S D"]) -> Float[Array, "B S D"] | None:
        return None

    def cost(self, D: int) -> Cost:
        specs = self.params(D, 1.0).values()
        return Cost.of_parameters((math.prod(s.shape), s.matrix is not None) for s in specs)

    def planned(self, D: int, here: Here) -> Planned:
        return Planned()

    def divisions(self, sizes: Mapping[str, int]) -> Iterator[Division]:
        yield from ()


@dataclass(frozen=True, kw_only=True)
class Nothing(BaseAround):
    """The experts stand alone."""


@dataclass(frozen=True, kw_only=True)
class OutputNorm(BaseAround):
    """y = norm(sum of weight * expert(x)) * scale, an RMS norm whose scale starts at 1: the size of
    what the experts add no longer hangs on how many there were, nor on their weights.

    With moe.latent_dim it stands before the projection back, as in Kimi K3.
    """

    def params(self, D: int, init_scale: float) -> dict[str, ParamSpec]:
        ones = jax.nn.initializers.ones
        return {
            "scale": ParamSpec(shape=(D,), init=ones, axes=("norm",), matrix=None, decays=False)
        }

    def outward(self, params: Params, y: Float[Array, "B S L"]) -> Float[Array, "B S D"]:
        return rms_norm(y, params["scale"])

    def planned(self, D: int, here: Here) -> Planned:
        return Planned(kept=here.tokens * D * here.bytes)


# A new one is a new file and one row here.
AROUND: dict[str, type[Around]] = {"none": Nothing, "output_norm": OutputNorm}
