"""Heads: one prediction of a row, one of each pixel, one of each target, or a class and a box of
each token."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from moe_jax.nn.param import parameter
from moe_jax.ops.initializers import fan_in
from moe_jax.routing.types import LAST_TWO

Pooling = Callable[[Float[Array, "B S D"], Bool[Array, "B S"]], Float[Array, "B D"]]


def _mean(x_BSD: Float[Array, "B S D"], valid_BS: Bool[Array, "B S"]) -> Float[Array, "B D"]:
    weight_BS = valid_BS.astype(jnp.float32)
    count_B1 = jnp.maximum(jnp.sum(weight_BS, axis=1, keepdims=True), 1)
    return jnp.sum(x_BSD * weight_BS[:, :, None], axis=1) / count_B1


def _first(x_BSD: Float[Array, "B S D"], valid_BS: Bool[Array, "B S"]) -> Float[Array, "B D"]:
    return x_BSD[:, 0]


def _last(x_BSD: Float[Array, "B S D"], valid_BS: Bool[Array, "B S"]) -> Float[Array, "B D"]:
    place_S = jnp.arange(x_BSD.shape[1], dtype=jnp.int32)
    last_B = jnp.max(jnp.where(valid_BS, place_S[None], 0), axis=1)
    return jnp.take_along_axis(x_BSD, last_B[:, None, None], axis=1)[:, 0]


# What the head sees of a row: the mean of its valid tokens, its first, or its last valid token.
POOLINGS: dict[str, Pooling] = {"mean": _mean, "first": _first, "last": _last}


class ClassHead(nnx.Module):
    """Logits of C classes for each row: pool(x) W + b, in float32. W starts at 1 / D of variance
    times `init_scale`, b at 0."""

    def __init__(self, D: int, C: int, pooling: str, *, init_scale: float, rngs: nnx.Rngs):
        self.kernel = parameter(
            rngs, fan_in(init_scale), (D, C), ("embed", None), matrix=LAST_TWO, decays=True
        )
        zeros = jax.nn.initializers.zeros
        self.bias = parameter(rngs, zeros, (C,), (None,), matrix=None, decays=False)
        self.pooling = pooling

    def __call__(
        self, x_BSD: Float[Array, "B S D"], valid_BS: Bool[Array, "B S"]
    ) -> Float[Array, "B C"]:
        pooled_BD = POOLINGS[self.pooling](x_BSD.astype(jnp.float32), valid_BS)
        kernel_DC, bias_C = (w[...].astype(jnp.float32) for w in (self.kernel, self.bias))
        logits_BC = jnp.matmul(pooled_BD, kernel_DC, precision=jax.lax.Precision.HIGHEST)
        return logits_BC + bias_C[None]


class BoxHead(nnx.Module):
    """Of each token logits of C classes, x W + b, and by how much its box differs from one that is
    known: gelu(x U) V, four numbers, in float32. b starts where each class has probability `prior`
    (Lin et al., 1708.02002, section 4.1), V at 0: a box starts where it is known to be."""

    def __init__(self, D: int, C: int, *, prior: float, init_scale: float, rngs: nnx.Rngs):
        drawn, zeros = fan_in(init_scale), jax.nn.initializers.zeros
        at_prior = jax.nn.initializers.constant(math.log(prior / (1 - prior)))
        matrix = functools.partial(parameter, rngs, matrix=LAST_TWO, decays=True)
        self.kernel = matrix(drawn, (D, C), ("embed", None))
        self.bias = parameter(rngs, at_prior, (C,), (None,), matrix=None, decays=False)
        self.hidden = matrix(drawn, (D, D), ("embed", None))
        self.change = matrix(zeros, (D, 4), (None, None))

    def __call__(
        self, x: Float[Array, "*B S D"]
    ) -> tuple[Float[Array, "*B S C"], Float[Array, "*B S 4"]]:
        x = x.astype(jnp.float32)
        logits = _times(x, self.kernel)
        bias = self.bias[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return logits + bias, _times(jax.nn.gelu(_times(x, self.hidden)), self.change)


def box_head_cost(D: int, C: int) -> tuple[int, int]:
    """(parameters, multiplications for each token)."""
    multiplied = D * C + D * D + 4 * D
    return multiplied + C, multiplied


def _times(x: Float[Array, "*B D"], kernel: nnx.Param[Array]) -> Float[Array, "*B F"]:
    kernel_DF = kernel[...].astype(jnp.float32)
    return jnp.matmul(x, kernel_DF, precision=jax.lax.Precision.HIGHEST)


class PixelHead(nnx.Module):
    """Logits of C classes for each pixel: x W + b of each patch's token, in float32, brought from
    the grid of patches to that of pixels bilinearly. The linear decoder of Segmenter, Strudel et
    al. (2105.05633), section 3.2."""

    def __init__(self, D: int, C: int, *, init_scale: float, rngs: nnx.Rngs):
        self.kernel = parameter(
            rngs, fan_in(init_scale), (D, C), ("embed", None), matrix=LAST_TWO, decays=True
        )
        zeros = jax.nn.initializers.zeros
        self.bias = parameter(rngs, zeros, (C,), (None,), matrix=None, decays=False)

    def __call__(
        self, x_BSD: Float[Array, "B S D"], grid: tuple[int, int], size: tuple[int, int]
    ) -> Float[Array, "B H W C"]:
        """The last tokens of a row are patches in reading order; size: height and width."""
        rows, columns = grid
        kernel_DC, bias_C = (w[...].astype(jnp.float32) for w in (self.kernel, self.bias))
        patch_BPD = x_BSD[:, x_BSD.shape[1] - rows * columns :].astype(jnp.float32)
        logits_BPC = jnp.matmul(patch_BPD, kernel_DC, precision=jax.lax.Precision.HIGHEST)
        logits_BPC = logits_BPC + bias_C[None, None]
        B, _, C = logits_BPC.shape
        logits_BRKC = logits_BPC.reshape(B, rows, columns, C)
        logits_BHWC: Array = jax.image.resize(logits_BRKC, (B, *size, C), "linear")
        return logits_BHWC


class Towers(nnx.Module):
    """A number for each of T targets: relu(x W_k + b_k) v_k + c_k, in float32, with H hidden
    units."""

    def __init__(self, D: int, H: int, T: int, *, init_scale: float, rngs: nnx.Rngs):
        form: dict[str, Any] = dict(matrix=LAST_TWO, decays=True)
        inward = fan_in(init_scale, batch_axis=0)
        self.inward = parameter(rngs, inward, (T, D, H), (None, "embed", None), **form)
        self.outward = parameter(rngs, inward, (T, H, 1), (None, None, None), **form)
        form = dict(matrix=None, decays=False)
        zeros = jax.nn.initializers.zeros
        self.inward_bias = parameter(rngs, zeros, (T, H), (None, None), **form)
        self.outward_bias = parameter(rngs, zeros, (T, 1), (None, None), **form)

    @staticmethod
    def parameters(D: int, H: int, T: int) -> int:
        return T * (D * H + 2 * H + 1)

    def __call__(self, x_TBD: Float[Array, "T B D"]) -> Float[Array, "B T"]:
        inward, outward, b, c = (
            w[...].astype(jnp.float32)
            for w in (self.inward, self.outward, self.inward_bias, self.outward_bias)
        )
        exact = jax.lax.Precision.HIGHEST
        x_TBD = x_TBD.astype(jnp.float32)
        hidden_TBH = jnp.einsum("TBD,TDH->TBH", x_TBD, inward, precision=exact) + b[:, None]
        value_TB1 = jnp.einsum("TBH,THO->TBO", jax.nn.relu(hidden_TBH), outward, precision=exact)
        value_BT: Array = (value_TB1 + c[:, None])[..., 0].T
        return value_BT
