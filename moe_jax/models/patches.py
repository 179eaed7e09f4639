"""What models of images share: patches as tokens, and their places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule, at_least, one_of
from moe_jax.models.transformer import Transformer, TransformerConfig
from moe_jax.models.types import IO
from moe_jax.nn.context import ImageBatch, TokenBatch, each_token
from moe_jax.nn.param import parameter
from moe_jax.nn.stem import ConvolutionalStem, stem_cost
from moe_jax.ops.initializers import fan_in
from moe_jax.ops.linear import linear
from moe_jax.routing.types import LAST_TWO

POSITIONS = ("learned", "sincos", "none")
STEMS = ("patch", "convolutions")
MAX_BATCHED_ROWS = 10_000.0  # of sincos, in patches over 2 pi


@dataclass(frozen=True, kw_only=True)
class PatchConfig(TransformerConfig):
    """Sizes and numerics of a model whose tokens are patches of an image.

    patch_size: P, height and width of a patch in pixels; it divides the image's. stem: what makes a
    patch a token: one matrix (`patch`), or `convolutions` of 3 x 3 pixels, each of which halves the
    image until a pixel is left of a patch, which train in fewer steps (nn/stem.py). positions: of
    the patches, `learned` or the fixed `sincos` in two dimensions, added to their embeddings; class
    and other extra tokens have learned ones.
    """

    patch_size: int = 2
    stem: str = "patch"
    positions: str = "learned"

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "patch_size")
        yield from one_of(self, STEMS, "stem")
        yield from one_of(self, POSITIONS, "positions")
        if self.positions == "sincos" and self.model_dim % 4:
            yield "model_dim", "must be a multiple of 4 for positions = sincos"
        if self.stem == "convolutions":
            P = self.patch_size
            if P < 2 or P & (P - 1):
                yield "patch_size", "must be 2, 4, 8, ... for model.stem = convolutions"
            elif self.model_dim % (P // 2):
                rule = f"must be a multiple of {P // 2}, which makes the first convolution's width"
                yield "model_dim", rule

    def fits(self, io: IO) -> Iterator[Rule]:
        if io.image is None:
            yield "kind", "reads images, and the data has none"
        elif io.image[0] % self.patch_size or io.image[1] % self.patch_size:
            yield "patch_size", f"must divide the image's {io.image[0]} x {io.image[1]} pixels"

    @property
    def class_token(self) -> bool:
        """Whether a learned token stands in front of the patches."""
        return False

    def grid(self, io: IO) -> tuple[int, int]:
        """Patches along the height and the width."""
        height, width, _ = io.image or (0, 0, 0)
        return height // self.patch_size, width // self.patch_size

    def row_length(self, io: IO) -> int:
        rows, columns = self.grid(io)
        return rows * columns + self.class_token

    def embedding_cost(self, io: IO) -> tuple[int, int]:
        """(parameters, multiplications for each patch) of what makes tokens of an image."""
        D, channels = self.model_dim, io.image[2] if io.image else 0
        parameters = multiplied = self.patch_size**2 * channels * D
        if self.stem == "convolutions":
            parameters, multiplied = stem_cost(self.patch_size, channels, D)
        places = self.row_length(io) if self.positions == "learned" else int(self.class_token)
        return parameters + (places + self.class_token) * D, multiplied


class PatchModel(Transformer):
    """Images (B, H, W, C), float32, of about mean 0 and variance 1 -> tokens."""

    config: PatchConfig
    io: IO  # set before __init__

    def make_input(self, rngs: nnx.Rngs) -> None:
        config, io = self.config, self.io
        D, S, channels = config.model_dim, config.row_length(io), (io.image or (0, 0, 0))[2]
        if config.stem == "convolutions":
            self.stem = ConvolutionalStem(config.patch_size, channels, D, rngs=rngs)
        else:
            shape = (config.patch_size**2 * channels, D)
            self.patch = parameter(
                rngs, fan_in(1.0), shape, (None, "embed"), matrix=LAST_TWO, decays=True
            )
        small = jax.nn.initializers.normal(0.02)
        places = S if config.positions == "learned" else int(config.class_token)
        form: dict[str, Any] = dict(axes=(None, "embed"), matrix=None, decays=False)
        self.place = parameter(rngs, small, (places, D), **form) if places else None
        zeros = jax.nn.initializers.zeros
        self.class_token = parameter(rngs, zeros, (1, D), **form) if config.class_token else None

    def batch_of(self, images: ImageBatch) -> TokenBatch:
        """Every token of an image in one segment."""
        B, S = images.valid_B.shape[0], self.config.row_length(self.io)
        valid_BS = jnp.broadcast_to(images.valid_B[:, None], (B, S))
        return TokenBatch(
            token_BS=None,
            position_BS=jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32)[None], (B, S)),
            segment_BS=valid_BS.astype(jnp.int32),
            row_B=images.row_B,
            task_BS=None if images.task_B is None else each_token(images.task_B, S),
        )

    def tokens(self, image_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B S D"]:
        """The patches in reading order, behind the class token where there is one."""
        config, image_BHWC = self.config, image_BHWC.astype(self.dtype)
        if config.stem == "convolutions":
            x_BSD = self.stem(image_BHWC)
        else:
            x_BSD = linear(patches(image_BHWC, config.patch_size), self.patch[...])
        if self.class_token is not None:
            first_1D = self.class_token[...].astype(self.dtype)
            first_B1D = jnp.broadcast_to(first_1D[None], (x_BSD.shape[0], *first_1D.shape))
            x_BSD = jnp.concatenate([first_B1D, x_BSD], axis=1)
        if config.positions == "sincos":
            place_PD = jnp.asarray(sincos(*config.grid(self.io), config.model_dim))
            if self.place is not None:
                place_PD = jnp.concatenate([self.place[...], place_PD])
            return x_BSD + place_PD.astype(self.dtype)[None]
        return x_BSD if self.place is None else x_BSD + self.place[...].astype(self.dtype)[None]


def patches(image_BHWC: Float[Array, "B H W C"], P: int) -> Float[Array, "B S N"]:
    """(B, H, W, C) -> (B, H W / P^2, P P C), patches in reading order, pixels too."""
    B, H, W, C = image_BHWC.shape
    cut = image_BHWC.reshape(B, H // P, P, W // P, P, C)
    return jnp.swapaxes(cut, 2, 3).reshape(B, (H // P) * (W // P), P * P * C)


def sincos(rows: int, columns: int, D: int) -> np.ndarray:
    """(rows * columns, D) float32: sines and cosines of row and column, a quarter of D each, with
    frequencies from 1 to 1 / 10000. Beyer et al. (2205.01580)."""
    quarter = D // 4
    frequency = MAX_BATCHED_ROWS ** (-np.arange(quarter) / max(quarter - 1, 1))
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [place.reshape(-1, 1) * frequency[None] for place in (x, y)]
    parts = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)
