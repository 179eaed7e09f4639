"""Products with a matrix of parameters: in which type, and which of their factors is transposed for
the gradient.

The matrix comes as it is kept, in float32, and is cast here, so that its gradient, a sum over all
tokens and devices, is never rounded to the type of the activations on its way.

dw = transpose(x) dy needs one of x and dy transposed. Left alone, XLA takes dy, and on CPU fuses
the activation or rotation that made it into a copy against the grain of the memory, which takes
longer than the product. Here the caller names the factor that is there as it is.
"""

from __future__ import annotations

import functools

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from moe_jax.ops.precision import dot_upcast


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def linear(
    x: Float[Array, "*n K"],
    w_KN: Float[Array, "K N"],
    turn_output: bool = False,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*n N"]:
    """x w, in x's type: w is cast to it. The gradient of w is summed in float32 and has w's type.

    turn_output: the gradient of w transposes the gradient of the output, not x: for an x that an
    elementwise function has just made. dtype: of sums and output; None: x's.
    """
    return _dot(x, w_KN.astype(x.dtype), 0, dtype)


def _dot(a: Array, b: Array, axis_b: int, dtype: DTypeLike | None) -> Array:
    dimensions = (((a.ndim - 1,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype)


def _forward(
    x: Array, w_KN: Array, turn_output: bool, dtype: DTypeLike | None
) -> tuple[Array, tuple[Array, Array]]:
    return _dot(x, w_KN.astype(x.dtype), 0, dtype), (x, w_KN)


def _backward(
    turn_output: bool, dtype: DTypeLike | None, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, w_KN = residuals
    dx = _dot(dy, w_KN.astype(x.dtype), 1, dtype).astype(x.dtype)
    every = tuple(range(x.ndim - 1))
    dimensions = ((every, every), ((), ()))
    if turn_output:
        return dx, dot_upcast(dy, x, dimensions).T.astype(w_KN.dtype)
    return dx, dot_upcast(x, dy, dimensions).astype(w_KN.dtype)


linear.defvjp(_forward, _backward)
