"""`dispatch` on every axis of the mesh: what each device does inside the layer's shard_map.

Experts lie with E over `expert`, F over `tensor` and D over `fsdp`; tokens over the rows' axes and
`sequence`, and are the same along `tensor`. The names are those of `MeshAxes`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.dispatch.dispatch import dispatch
from moe_jax.experts.types import Networks
from moe_jax.parallel.axes import OURS, MeshAxes, axis_size
from moe_jax.routing.types import ParamSpec, Plan, SoftPlan


def sharded_dispatch(
    x_gTD: Float[Array, "g T D"],
    plan_g: Plan | SoftPlan,
    experts: Networks,
    *,
    layout: str,
    transport: str,
    receive_factor: float,
    chunks: int = 1,
    axes: MeshAxes = OURS,
) -> tuple[Float[Array, "g T D"], Int[Array, "g"]]:
    """`dispatch` of this device's groups to the experts of its mesh.

    experts: this device's experts and its part of F, whole along D (`gathered_weights`).
    Collectives beside the transport's own, with t devices along `tensor`:
      tensor  without expert parallelism one all-reduce of the outputs, 2 (t - 1) / t of
              g * T * D elements. With it each rank sends over `expert` only its D / t columns of
              every row, so `tensor` carries an all-gather of the received rows' columns, a
              reduce-scatter of the experts' partial sums (both (t - 1) / t of the receive
              buffer) and an all-gather of the outputs' columns; the bytes of the transport's
              docstring are divided by t.
    """
    tensor, t = axes.tensor, axis_size(axes.tensor)
    spread = axis_size(axes.expert) > 1
    run = functools.partial(
        dispatch,
        layout=layout,
        transport=transport,
        axis=axes.expert if spread else None,
        receive_factor=receive_factor,
        chunks=chunks,
    )
    if tensor is None or t == 1:
        return run(x_gTD, plan_g, experts)
    if not spread:
        y_gTD, lost_g = run(x_gTD, plan_g, experts)
        return jax.lax.psum(y_gTD, tensor), lost_g
    d = x_gTD.shape[-1] // t
    first = jax.lax.axis_index(tensor) * d
    x_gTd = jax.lax.dynamic_slice_in_dim(x_gTD, first, d, axis=2)
    y_gTd, lost_g = run(x_gTd, plan_g, ColumnExperts(experts, tensor))
    return jax.lax.all_gather(y_gTd, tensor, axis=2, tiled=True), lost_g


def gathered_weights(
    weights: Mapping[str, Array], specs: Mapping[str, ParamSpec], dtype: jnp.dtype, fsdp: str | None
) -> dict[str, Array]:
    """This device's part of the weights as they are kept -> as experts use them: whole along D,
    matrices in the type of the activations (vectors stay as they are).

    One all-gather over fsdp of (f - 1) / f of the elements, for three matrices of
    3 * E/n * D * F/t, and backward one reduce-scatter of as many, in the weights' own type; never
    over `expert`.
    """

    def whole(w: Array, spec: ParamSpec) -> Array:
        kept = w.dtype if spec.matrix is None else dtype
        if fsdp is None or axis_size(fsdp) == 1 or "embed" not in spec.axes:
            return w.astype(kept)
        return _gathered(w, spec.axes.index("embed"), kept, fsdp)

    return {name: whole(w, specs[name]) for name, w in weights.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(w: Array, axis: int, dtype: jnp.dtype, fsdp: str) -> Array:
    """All-gather over fsdp in the type of the activations; the gradient is summed in w's own."""
    whole: Array = jax.lax.all_gather(w.astype(dtype), fsdp, axis=axis, tiled=True)
    return whole


def _gathered_forward(w: Array, axis: int, dtype: jnp.dtype, fsdp: str) -> tuple[Array, Array]:
    # Of w only its type is needed.
    return _gathered(w, axis, dtype, fsdp), jnp.zeros((0,), w.dtype)


def _gathered_backward(
    axis: int, dtype: jnp.dtype, fsdp: str, like: Array, dw: Array
) -> tuple[Array]:
    dw = dw.astype(like.dtype)
    return (jax.lax.psum_scatter(dw, fsdp, scatter_dimension=axis, tiled=True),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


@dataclass(frozen=True)
class ColumnExperts:
    """Experts whose F is split over `axis`, for tokens of which each rank has D / t columns."""

    weights: Networks
    axis: str

    def slots(self, x_ECd: Float[Array, "E C d"]) -> Float[Array, "E C d"]:
        return self._split(self.weights.slots(self._whole(x_ECd)))

    def rows(
        self, x_Rd: Float[Array, "R d"], sizes_E: Int[Array, "E"], expected: int | None = None
    ) -> Float[Array, "R d"]:
        return self._split(self.weights.rows(self._whole(x_Rd), sizes_E, expected))

    def all(self, x_Td: Float[Array, "T d"]) -> Float[Array, "T E d"]:
        return self._split(self.weights.all(self._whole(x_Td)))

    def _whole(self, x: Array) -> Array:
        whole: Array = jax.lax.all_gather(x, self.axis, axis=x.ndim - 1, tiled=True)
        return whole

    def _split(self, y: Array) -> Array:
        part: Array = jax.lax.psum_scatter(y, self.axis, scatter_dimension=y.ndim - 1, tiled=True)
        return part
