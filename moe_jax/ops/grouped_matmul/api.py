"""`grouped_matmul`: one op, a table of backends."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int

from moe_jax.ops.grouped_matmul.blocks import blocks
from moe_jax.ops.grouped_matmul.megablox import megablox
from moe_jax.ops.grouped_matmul.ragged_dot import ragged_dot
from moe_jax.ops.grouped_matmul.reference import reference
from moe_jax.ops.grouped_matmul.triton import triton

# A new backend is a new file and one row here.
BACKENDS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "reference": reference,
    "ragged_dot": ragged_dot,
    "blocks": blocks,
    "megablox": megablox,
    "triton": triton,
}
# What "auto" stands for on a platform; elsewhere "blocks".
AUTO = {"tpu": "megablox", "gpu": "triton", "cuda": "triton", "rocm": "triton"}


def resolve(backend: str, platform: str | None = None) -> str:
    """The row of BACKENDS that a name stands for on a platform (None: where JAX runs)."""
    if backend == "auto":
        return AUTO.get(platform or jax.default_backend(), "blocks")
    if backend not in BACKENDS:
        raise ValueError(f"grouped_matmul: no backend {backend!r}; there are {sorted(BACKENDS)}")
    return backend


def grouped_matmul(
    x_RK: Float[Array, "R K"],
    w_EKN: Float[Array, "E K N"],
    sizes_E: Int[Array, "E"],
    *,
    backend: str = "auto",
) -> Float[Array, "R N"]:
    """y_r = x_r w_e(r), where e(r) is the group of row r.

    Rows are sorted by group: the first sizes_0 belong to group 0, the next sizes_1 to group 1,
    and so on. Groups may be empty. Rows past sum(sizes) <= R belong to no group: whatever they
    hold, they give zeros and get a zero gradient.

    Args:
      x_RK, w_EKN: rows and matrices of one dtype. sizes_E: int32, not negative.
      backend: a row of BACKENDS, or "auto": `megablox` on TPU, `triton` on GPU, elsewhere `blocks`,
        plain JAX at the cost of the rows. Nothing falls back to `jax.lax.ragged_dot` unasked, which
        costs rows x groups on CPU and GPU, and in the weight gradient on TPU.

    Returns y_RN in x's dtype. Products accumulate in float32 (float64 for float64), forward and
    in both gradients; dx has x's dtype, dw has w's. No collective runs.
    """
    return BACKENDS[resolve(backend)](x_RK, w_EKN, sizes_E)
