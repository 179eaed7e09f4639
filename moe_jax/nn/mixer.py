"""What a token mixer is: the part of a block in which the tokens of a row see each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from moe_jax.config.fields import Rule
from moe_jax.nn.cost import Cost, Division, Here, Planned


@dataclass(frozen=True, kw_only=True)
class RowSizes:
    """What a mixer knows of its model. causal: a token sees itself and earlier ones of its segment
    only. rope_theta: of rotary positions; None: positions are known otherwise. kernel: see
    nn/attention.py."""

    model_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    causal: bool = True
    rope_theta: float | None = None
    qk_norm: bool = False
    kernel: str = "auto"
    init_scale: float = 1.0


class Mixes(Protocol):
    """A mixer's module."""

    def __call__(
        self,
        x_BSD: Float[Array, "B S D"],
        position_BS: Int[Array, "B S"],
        segment_BS: Int[Array, "B S"],
        cache: PyTree[Array] | None = None,
        span: int | None = None,
    ) -> tuple[Float[Array, "B S D"], PyTree[Array] | None]:
        """segment 0 is padding; no token sees another segment's. span: a bound of the positions;
        None: the length of the rows, or of the cache. Returns the output and the next cache."""
        ...


@runtime_checkable
class Mixer(Protocol):
    """A frozen dataclass whose fields are its config. `BaseMixer` has defaults of all but `make`.

    A mixer of a model that reads in order gives no token anything of later ones.
    """

    def check(self) -> Iterator[Rule]: ...

    def make(self, sizes: RowSizes, mesh: Mesh, rngs: nnx.Rngs) -> nnx.Module:
        """The module, called as `Mixes`; its parameters are made by `nn.param.parameter`."""
        ...

    def cost(self, sizes: RowSizes, S: int) -> Cost:
        """Of rows of S tokens."""
        ...

    def planned(self, sizes: RowSizes, here: Here) -> Planned: ...

    def cache(self, sizes: RowSizes, B: int, P: int, dtype: DTypeLike) -> PyTree[Array] | None:
        """An empty cache, a pytree, for B rows of up to P positions; None: there is none, and such
        a model cannot generate."""
        ...

    def divisions(self, sizes: RowSizes, mesh: Mapping[str, int]) -> Iterator[Division]:
        """What a mesh of these sizes must divide; paths begin with "model."."""
        ...


@dataclass(frozen=True, kw_only=True)
class BaseMixer:
    """The defaults of `Mixer`; costs are those of the module's own parameters."""

    def check(self) -> Iterator[Rule]:
        yield from ()

    def make(self, sizes: RowSizes, mesh: Mesh, rngs: nnx.Rngs) -> nnx.Module:
        raise NotImplementedError

    def cost(self, sizes: RowSizes, S: int) -> Cost:
        mesh: Any = None  # nothing is laid out
        return Cost.of_parameters(_parameters(self, sizes, mesh))

    def planned(self, sizes: RowSizes, here: Here) -> Planned:
        """As if each of its products had the model's width."""
        one = here.tokens * sizes.model_dim * here.bytes
        matrices = self.cost(sizes, here.row).multiplied / sizes.model_dim**2
        return Planned(kept=matrices * one, products=matrices * one)

    def cache(self, sizes: RowSizes, B: int, P: int, dtype: DTypeLike) -> PyTree[Array] | None:
        return None

    def divisions(self, sizes: RowSizes, mesh: Mapping[str, int]) -> Iterator[Division]:
        yield from ()


@dataclass(frozen=True, kw_only=True)
class NoMixer(BaseMixer):
    """The tokens of a row do not see each other."""

    def make(self, sizes: RowSizes, mesh: Mesh, rngs: nnx.Rngs) -> nnx.Module:
        return Apart()

    def planned(self, sizes: RowSizes, here: Here) -> Planned:
        return Planned()


class Apart(nnx.Module):
    """Adds nothing to a token."""

    def __call__(
        self,
        x_BSD: Float[Array, "B S D"],
        position_BS: Int[Array, "B S"],
        segment_BS: Int[Array, "B S"],
        cache: PyTree[Array] | None = None,
        span: int | None = None,
    ) -> tuple[Float[Array, "B S D"], PyTree[Array] | None]:
        return jnp.zeros_like(x_BSD), cache


def _parameters(mixer: BaseMixer, sizes: RowSizes, mesh: Mesh) -> list[tuple[int, bool]]:
    """(size, whether it holds matrices) of each parameter of a mixer's module."""

    def make(key: Array) -> nnx.State[str, PyTree]:
        return nnx.state(mixer.make(sizes, mesh, nnx.Rngs(params=key)), nnx.Param)

    state = nnx.to_flat_state(nnx.eval_shape(make, jax.random.key(0)))
    return [(v.get_value().size, v.get_metadata("form").is_matrix) for _, v in state]
