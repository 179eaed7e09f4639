"""The vision transformer: patches of an image as tokens, one class for each image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from moe_jax.config.fields import Rule, at_least, one_of
from moe_jax.models.transformer import Transformer, TransformerConfig
from moe_jax.models.types import (
    IO,
    Ends,
    Output,
    PixelClass,
    RouterStates,
    RowClass,
    RowLabels,
    of_rows,
)
from moe_jax.nn.context import Context, ImageBatch, TokenBatch
from moe_jax.nn.ensemble import AnyPredictions
from moe_jax.nn.head import POOLINGS, ClassHead, PixelHead
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.nn.param import parameter
from moe_jax.nn.predictions import PixelLogits
from moe_jax.ops.initializers import fan_in
from moe_jax.ops.linear import linear
from moe_jax.routing.types import LAST_TWO

POSITIONS = ("learned", "sincos", "none")
MAX_BATCHED_ROWS = 10_000.0  # of sincos, in patches over 2 pi


@dataclass(frozen=True, kw_only=True)
class VitConfig(TransformerConfig):
    """Sizes and numerics of a vision transformer.

    patch_size: P, height and width of a patch in pixels; it divides the image's. positions: of the
    patches, `learned` or the fixed `sincos` in two dimensions, added to their embeddings; class and
    other extra tokens have learned ones. pooling: what a head of one class a row sees: the `mean`
    of all tokens, or the `first`, which then is a class token, learned and in front.

    ViT: Dosovitskiy et al. (2010.11929); with sparse layers V-MoE, Riquelme et al. (2106.05974):
    every = 2, first = 1 is their "every 2", every = 1, first = num_layers - n their "last n". Norms
    are RMS norms, and there are no biases but the head's, as everywhere here.
    """

    patch_size: int = 2
    positions: str = "learned"
    pooling: str = "mean"

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "patch_size")
        yield from one_of(self, POSITIONS, "positions")
        yield from one_of(self, tuple(name for name in POOLINGS if name != "last"), "pooling")
        if self.positions == "sincos" and self.model_dim % 4:
            yield "model_dim", "must be a multiple of 4 for positions = sincos"

    def fits(self, io: IO) -> Iterator[Rule]:
        if io.image is None:
            yield "kind", "reads images, and the data has none"
        elif io.image[0] % self.patch_size or io.image[1] % self.patch_size:
            yield "patch_size", f"must divide the image's {io.image[0]} x {io.image[1]} pixels"
        if not isinstance(io.gives, RowClass | RowLabels | PixelClass):
            yield (
                "kind",
                "gives a class for each image or each pixel, or labels: task.kind says which",
            )

    @property
    def class_token(self) -> bool:
        return self.pooling == "first"

    def grid(self, io: IO) -> tuple[int, int]:
        """Patches along the height and the width."""
        height, width, _ = io.image or (0, 0, 0)
        return height // self.patch_size, width // self.patch_size

    def row_length(self, io: IO) -> int:
        rows, columns = self.grid(io)
        return rows * columns + self.class_token

    def ends(self, io: IO) -> Ends:
        D, S, classes = self.model_dim, self.row_length(io), io.classes or 0
        channels = io.image[2] if io.image else 0
        patch = self.patch_size**2 * channels * D
        places = (S if self.positions == "learned" else int(self.class_token)) * D
        head = D * classes
        seen = S - self.class_token if isinstance(io.gives, PixelClass) else 1
        return Ends(
            parameters=patch + places + self.class_token * D + head + classes,
            multiplied=(patch * (S - self.class_token) + seen * head) / max(S, 1),
        )

    def build(self, moe: MoEConfig, io: IO, mesh: Mesh, *, rngs: nnx.Rngs) -> VisionTransformer:
        return VisionTransformer(self, moe, io, mesh, rngs=rngs)


class VisionTransformer(Transformer):
    """Images (B, H, W, C), float32, of about mean 0 and variance 1 -> logits of classes, for each
    image or each pixel."""

    config: VitConfig

    def __init__(self, config: VitConfig, moe: MoEConfig, io: IO, mesh: Mesh, *, rngs: nnx.Rngs):
        self.io = io
        super().__init__(config, moe, mesh, rngs=rngs)
        sizes, scale = (config.model_dim, io.classes or 0), config.init_scale
        per_pixel = isinstance(io.gives, PixelClass)
        self.pixels = PixelHead(*sizes, init_scale=scale, rngs=rngs) if per_pixel else None
        self.classes = (
            None if per_pixel else ClassHead(*sizes, config.pooling, init_scale=scale, rngs=rngs)
        )

    def make_input(self, rngs: nnx.Rngs) -> None:
        config, io = self.config, self.io
        D, S, channels = config.model_dim, config.row_length(io), (io.image or (0, 0, 0))[2]
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

    def __call__(
        self, images: ImageBatch, context: Context, router_state: RouterStates, cache: None = None
    ) -> Output:
        x_BSD = self._tokens(jnp.asarray(images.image_BHWC))
        B, S = x_BSD.shape[:2]
        valid_BS = jnp.broadcast_to(images.valid_B[:, None], (B, S))
        batch = TokenBatch(
            token_BS=None,
            position_BS=jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32)[None], (B, S)),
            segment_BS=valid_BS.astype(jnp.int32),
            row_B=images.row_B,
        )
        x_BSD, output = self.through_layers(x_BSD, batch, context, router_state)
        predictions = self.predicted(self._predictions(x_BSD, valid_BS), context)
        return dataclasses.replace(output, predictions=predictions)

    def _predictions(
        self, x_NSD: Float[Array, "N S D"], valid_BS: Bool[Array, "B S"]
    ) -> AnyPredictions:
        if self.pixels is not None:
            grid, (height, width, _) = self.config.grid(self.io), self.io.image or (0, 0, 0)
            logits = self.pixels(x_NSD, grid, (height, width))
            return PixelLogits(logits_BHWC=logits, grid=grid, ahead=int(self.config.class_token))
        assert self.classes is not None
        logits_NC = self.classes(x_NSD, self.layout.ensemble.rows(valid_BS))
        return of_rows(self.io.gives, logits_NC)

    def _tokens(self, image_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B S D"]:
        """The patches in reading order, behind the class token where there is one."""
        config = self.config
        patches_BSP = patches(image_BHWC.astype(self.dtype), config.patch_size)
        x_BSD = linear(patches_BSP, self.patch[...])
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
