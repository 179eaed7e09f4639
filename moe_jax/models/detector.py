"""The detector: patches of an image in an encoder, one object query for each in a decoder, a class
and a box of each behind every layer."""

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
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule
from moe_jax.models.halves import DECODER, ENCODER, TwoHalves
from moe_jax.models.patches import PatchConfig, PatchModel
from moe_jax.models.types import IO, Ends, ObjectBoxes, Output, RouterStates
from moe_jax.nn.context import Context, ImageBatch
from moe_jax.nn.cross import Memory
from moe_jax.nn.head import BoxHead, box_head_cost
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.nn.norm import RMSNorm
from moe_jax.nn.param import parameter
from moe_jax.nn.predictions import BoxPredictions
from moe_jax.ops.initializers import fan_in
from moe_jax.routing.types import LAST_TWO

PRIOR = 0.01  # the probability of a class that a new model gives
SHORTEST, LONGEST = 0.01, 10.0  # of the waves that tell a box, as shares of the image


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(TwoHalves, PatchConfig):
    """Sizes and numerics of a detector.

    encoder_layers: of num_layers those of the encoder; None: half of them. Sparse layers are
    counted in each part by itself. anchor: side of the box, as a share of the image's, that stands
    at the middle of each patch before anything is learned.

    A DETR (Carion et al., 2005.12872) of the kind that is known to converge early: queries are
    anchor boxes, told to the decoder by sines of their four numbers, as in DAB-DETR (2201.12329,
    section 4.2); they and their contents come from the encoder, which has a loss of its own, as in
    the two stages of Deformable DETR (2010.04159, section 4.2) and Efficient DETR (2104.01318), but
    of every patch, none is selected; each layer refines the boxes of the one before, and gradients
    go through all, as DINO looks forward (2203.03605, section 3.5). All layers of the decoder share
    one norm and one head, as in DETR.
    """

    patch_size: int = 8
    stem: str = "convolutions"
    positions: str = "sincos"
    anchor: float = 0.3

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not 0 < self.anchor < 1:
            yield "anchor", "must lie between 0 and 1"
        if self.model_dim % 8:
            yield "model_dim", "must be a multiple of 8: the waves of a box's four numbers"

    def fits(self, io: IO) -> Iterator[Rule]:
        yield from super().fits(io)
        if not isinstance(io.gives, ObjectBoxes):
            yield "kind", "gives the objects of an image: task.kind says what is asked for"
        elif io.image is not None and io.gives.objects > self.row_length(io):
            yield (
                "patch_size",
                f"makes {self.row_length(io)} patches, each of which predicts an object, and up to "
                f"{io.gives.objects} are matched (data.max_objects x task.copies)",
            )

    def ends(self, io: IO) -> Ends:
        """With the norm behind the encoder and, of the decoder's head, one use for each layer."""
        D = self.model_dim
        parameters, patch = self.embedding_cost(io)
        head, multiplied = box_head_cost(D, io.classes or 0)
        uses = 1 + self.num_layers - self.layers_of_encoder
        return Ends(
            parameters=parameters + 2 * head + D * D + 2 * D,
            multiplied=patch + D * D + uses * multiplied,
        )

    def build(self, moe: MoEConfig, io: IO, mesh: Mesh, *, rngs: nnx.Rngs) -> Detector:
        return Detector(self, moe, io, mesh, rngs=rngs)


class Detector(PatchModel):
    """Images -> behind the encoder and each layer of the decoder, for each patch, logits of classes
    and a box."""

    config: DetectorConfig

    def __init__(
        self, config: DetectorConfig, moe: MoEConfig, io: IO, mesh: Mesh, *, rngs: nnx.Rngs
    ):
        self.io = io
        super().__init__(config, moe, mesh, rngs=rngs)
        D, C = config.model_dim, io.classes or 0
        options: dict[str, Any] = dict(prior=PRIOR, init_scale=config.init_scale, rngs=rngs)
        self.encoder_norm = RMSNorm(D, rngs=rngs)
        self.proposals = BoxHead(D, C, **options)
        self.objects = BoxHead(D, C, **options)
        self.told = parameter(
            rngs, fan_in(1.0), (D, D), (None, "embed"), matrix=LAST_TWO, decays=True
        )
        zeros = jax.nn.initializers.zeros
        self.query = parameter(rngs, zeros, (1, D), (None, "embed"), matrix=None, decays=False)

    def __call__(
        self, images: ImageBatch, context: Context, router_state: RouterStates, cache: None = None
    ) -> Output:
        batch = self.batch_of(images)
        x_BSD = self.tokens(jnp.asarray(images.image_BHWC))
        x_BSD, encoded = self.through_part(ENCODER, x_BSD, batch, context, router_state)
        x_BSD = self.encoder_norm(x_BSD)
        memory = Memory(hidden_BPD=x_BSD, segment_BP=batch.segment_BS)
        first_BSC, change_BS4 = self.proposals(x_BSD)
        anchor_BS4 = jnp.asarray(self._anchors())[None] + change_BS4
        _, decoded = self.through_part(
            DECODER,
            self._queries(x_BSD, anchor_BS4),
            batch,
            context,
            router_state,
            memory=memory,
            every_layer=True,
        )
        stacks = self.layout.parts[DECODER].stacks
        hidden_LBSD = self.layout.in_layer_order(decoded.hidden, stacks)
        logits_LBSC, change_LBS4 = self.objects(self.final_norm(hidden_LBSD))
        place_LBS4 = anchor_BS4[None] + jnp.cumsum(change_LBS4, axis=0)
        predictions = BoxPredictions(
            logits_BLQC=_by_row(first_BSC, logits_LBSC),
            box_BLQ4=jax.nn.sigmoid(_by_row(anchor_BS4, place_LBS4)),
        )
        return dataclasses.replace(self.output_of([encoded, decoded]), predictions=predictions)

    def _anchors(self) -> np.ndarray:
        """(S, 4) float32: log(p / (1 - p)) of the boxes before anything is learned."""
        rows, columns = self.config.grid(self.io)
        y, x = np.meshgrid(
            (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij"
        )
        side = np.full(rows * columns, self.config.anchor)
        share_S4 = np.stack([x.ravel(), y.ravel(), side, side], axis=1)
        return np.log(share_S4 / (1 - share_S4)).astype(np.float32)

    def _queries(
        self, x_BSD: Float[Array, "B S D"], anchor_BS4: Float[Array, "B S 4"]
    ) -> Float[Array, "B S D"]:
        """What the encoder made of each patch, and where its box is; the box is learned by its own
        loss alone."""
        box_BS4 = jax.nn.sigmoid(jax.lax.stop_gradient(anchor_BS4))
        waves_BSD = waves(box_BS4, self.config.model_dim)
        told_BSD = jnp.matmul(waves_BSD, self.told[...].astype(jnp.float32))
        query_BSD = x_BSD.astype(jnp.float32) + told_BSD + self.query[...][None]
        return query_BSD.astype(self.dtype)


def waves(box_BS4: Float[Array, "B S 4"], D: int) -> Float[Array, "B S D"]:
    """Sines and cosines of each of a box's numbers, D / 8 of each, their lengths from a hundredth
    of the image to ten images."""
    count = D // 8
    length = SHORTEST * (LONGEST / SHORTEST) ** (np.arange(count) / max(count - 1, 1))
    rate_F = jnp.asarray((2 * np.pi / length).astype(np.float32))
    angle_BS4F = box_BS4[..., None] * rate_F[None, None, None]
    both = jnp.concatenate([jnp.sin(angle_BS4F), jnp.cos(angle_BS4F)], axis=-1)
    return both.reshape(*box_BS4.shape[:2], D)


def _by_row(first_BS: Float[Array, "B S F"], later_LBS: Float[Array, "L B S F"]) -> Array:
    """(B, 1 + L, S, F)"""
    return jnp.swapaxes(jnp.concatenate([first_BS[None], later_LBS]), 0, 1)
