"""The vision transformer: patches of an image as tokens, one class for each image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from moe_jax.config.fields import Rule, one_of
from moe_jax.models.patches import PatchConfig, PatchModel
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
from moe_jax.nn.context import Context, ImageBatch
from moe_jax.nn.ensemble import AnyPredictions
from moe_jax.nn.head import POOLINGS, ClassHead, PixelHead
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.nn.predictions import PixelLogits


@dataclass(frozen=True, kw_only=True)
class VitConfig(PatchConfig):
    """Sizes and numerics of a vision transformer.

    pooling: what a head of one class a row sees: the `mean` of all tokens, or the `first`, which
    then is a class token, learned and in front.

    ViT: Dosovitskiy et al. (2010.11929); with sparse layers V-MoE, Riquelme et al. (2106.05974):
    every = 2, first = 1 is their "every 2", every = 1, first = num_layers - n their "last n". Norms
    are RMS norms, and there are no biases but the head's, as everywhere here.
    """

    pooling: str = "mean"

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from one_of(self, tuple(name for name in POOLINGS if name != "last"), "pooling")

    def fits(self, io: IO) -> Iterator[Rule]:
        yield from super().fits(io)
        if not isinstance(io.gives, RowClass | RowLabels | PixelClass):
            yield (
                "kind",
                "gives a class for each image or each pixel, or labels: task.kind says which",
            )

    @property
    def class_token(self) -> bool:
        return self.pooling == "first"

    def ends(self, io: IO) -> Ends:
        D, S, classes = self.model_dim, self.row_length(io), io.classes or 0
        parameters, patch = self.embedding_cost(io)
        head, patches = D * classes, S - self.class_token
        seen = patches if isinstance(io.gives, PixelClass) else 1
        return Ends(
            parameters=parameters + head + classes,
            multiplied=(patch * patches + seen * head) / max(S, 1),
        )

    def build(self, moe: MoEConfig, io: IO, mesh: Mesh, *, rngs: nnx.Rngs) -> VisionTransformer:
        return VisionTransformer(self, moe, io, mesh, rngs=rngs)


class VisionTransformer(PatchModel):
    """Images -> logits of classes, for each image or each pixel."""

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

    def __call__(
        self, images: ImageBatch, context: Context, router_state: RouterStates, cache: None = None
    ) -> Output:
        batch = self.batch_of(images)
        x_BSD = self.tokens(jnp.asarray(images.image_BHWC))
        x_BSD, output = self.through_layers(x_BSD, batch, context, router_state)
        predictions = self.predicted(self._predictions(x_BSD, batch.segment_BS > 0), context)
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
