"""From an image to the tokens of its patches by convolutions."""

from __future__ import annotations

import functools

import jax
from flax import nnx
from jaxtyping import Array, Float

from moe_jax.nn.norm import RMSNorm
from moe_jax.nn.param import parameter
from moe_jax.ops.initializers import fan_in
from moe_jax.ops.linear import linear
from moe_jax.routing.types import LAST_TWO

SIDE = 3  # pixels of a kernel


def widths(P: int, channels: int, D: int) -> list[tuple[int, int]]:
    """(channels in, channels out) of each convolution: log2(P) of them, the last one D wide, each
    before it half as wide."""
    count = P.bit_length() - 1
    outs = [D >> (count - 1 - i) for i in range(count)]
    return list(zip([channels, *outs[:-1]], outs, strict=True))


class ConvolutionalStem(nnx.Module):
    """Convolutions of 3 x 3 pixels and stride 2, each with an RMS norm over channels and GELU, then
    a matrix: (B, H, W, C) -> (B, H W / P^2, D), patches in reading order.

    Xiao et al. (2106.14881), who find that such a stem lets vision transformers train in fewer
    steps; they have one convolution of stride 1 more, and batch norms.
    """

    def __init__(self, P: int, channels: int, D: int, *, rngs: nnx.Rngs):
        rows = (-4, -3, -2)
        self.kernels = nnx.List(
            parameter(
                rngs,
                fan_in(2.0, in_axis=(0, 1, 2)),
                (SIDE, SIDE, *sizes),
                (None, None, None, None),
                matrix=(rows, (-1,)),
                decays=True,
            )
            for sizes in widths(P, channels, D)
        )
        self.norms = nnx.List(RMSNorm(out, rngs=rngs) for _, out in widths(P, channels, D))
        self.out = parameter(
            rngs, fan_in(1.0), (D, D), (None, "embed"), matrix=LAST_TWO, decays=True
        )

    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B S D"]:
        convolution = functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=(2, 2),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for kernel, norm in zip(self.kernels, self.norms, strict=True):
            x_BHWC = jax.nn.gelu(norm(convolution(x_BHWC, kernel[...].astype(x_BHWC.dtype))))
        return linear(x_BHWC.reshape(x_BHWC.shape[0], -1, x_BHWC.shape[-1]), self.out[...])


def stem_cost(P: int, channels: int, D: int) -> tuple[int, int]:
    """(parameters, multiplications for each patch)."""
    parameters, multiplied, pixels = D * D, D * D, P * P
    for into, out in widths(P, channels, D):
        pixels //= 4  # of what is left of a patch
        kernel = SIDE * SIDE * into * out
        parameters += kernel + out
        multiplied += kernel * pixels
    return parameters, multiplied
