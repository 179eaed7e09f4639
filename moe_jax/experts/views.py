"""An expert's formula on the three views of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from moe_jax.experts.types import View
from moe_jax.ops.expert_ffn import FUSED, row_backend
from moe_jax.ops.grouped_matmul import BACKENDS, grouped_matmul
from moe_jax.ops.precision import accumulator, dot_upcast, upcast


class Formula(Protocol):
    def apply(self, x: Array, view: View) -> Array: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Views:
    """`expert.apply` as `types.Networks`. backend, platform, tensor: see `types.Expert`."""

    weights: dict[str, Array]
    expert: Formula = field(metadata={"static": True})
    backend: str = field(metadata={"static": True})
    platform: str | None = field(metadata={"static": True})
    tensor: str | None = field(metadata={"static": True})

    def slots(self, x_ECD: Float[Array, "E C D"]) -> Float[Array, "E C D"]:
        def times(x_ECN: Array, w_ENM: Array) -> Array:
            dtype = accumulator(x_ECN.dtype)
            y = jnp.einsum("ECN,ENM->ECM", x_ECN, w_ENM, preferred_element_type=dtype)
            return y.astype(x_ECN.dtype)

        return self._applied(x_ECD, times, lambda b_EN: b_EN[:, None, :])

    def rows(
        self, x_RD: Float[Array, "R D"], sizes_E: Int[Array, "E"], expected: int | None = None
    ) -> Float[Array, "R D"]:
        R, E = x_RD.shape[0], sizes_E.shape[0]
        backend = row_backend(self.backend, self.platform, R if expected is None else expected, E)
        # The fused backends are of one formula; their single products are those of "blocks".
        backend = "blocks" if backend in FUSED and backend not in BACKENDS else backend
        end_E = jnp.cumsum(sizes_E)
        expert_R = jnp.searchsorted(end_E, jnp.arange(R, dtype=sizes_E.dtype), side="right")

        def times(x_RN: Array, w_ENM: Array) -> Array:
            return grouped_matmul(x_RN, w_ENM, sizes_E=sizes_E, backend=backend)

        def each(b_EN: Array) -> Array:
            return b_EN.at[expert_R].get(mode="fill", fill_value=0)

        y_RD = self._applied(x_RD, times, each)
        # Rows of no expert are zeros, whatever the formula gives for them (a constant, say).
        return jnp.where((expert_R < E)[:, None], y_RD, 0)

    def all(self, x_TD: Float[Array, "T D"]) -> Float[Array, "T E D"]:
        E = next(iter(self.weights.values())).shape[0]

        def times(x_ETN: Array, w_ENM: Array) -> Array:
            return dot_upcast(x_ETN, w_ENM, (((2,), (1,)), ((0,), (0,)))).astype(x_TD.dtype)

        # The gradient is summed over the experts, in float32.
        x_ETD = jnp.broadcast_to(upcast(x_TD)[None], (E, *x_TD.shape)).astype(x_TD.dtype)
        y_ETD = self._applied(x_ETD, times, lambda b_EN: b_EN[:, None, :])
        return y_ETD.swapaxes(0, 1)

    def _applied(
        self, x: Array, times: Callable[[Array, Array], Array], each: Callable[[Array], Array]
    ) -> Array:
        view = OneView(weights=self.weights, product=times, each=each, tensor=self.tensor)
        return self.expert.apply(x, view).astype(x.dtype)


@dataclass(frozen=True, kw_only=True)
class OneView:
    """`types.View` of one of them."""

    weights: dict[str, Array]
    product: Callable[[Array, Array], Array]
    each: Callable[[Array], Array]
    tensor: str | None

    def times(self, x: Array, name: str) -> Array:
        y = self.product(x, self.weights[name])
        # For `jax.checkpoint` policies, which keep the hidden ones by name.
        return y if y.shape == x.shape else checkpoint_name(y, "expert_hidden")

    def vector(self, name: str) -> Array:
        return self.each(self.weights[name])

    def once(self, value: Array) -> Array:
        if self.tensor is None or jax.lax.axis_size(self.tensor) == 1:
            return value
        return jnp.where(jax.lax.axis_index(self.tensor) == 0, value, 0)
