"""The decoder: a model of text that reads a row in its order."""

from __future__ import annotations

from dataclasses import dataclass

from flax import nnx
from jax.sharding import Mesh

from moe_jax.models.text import TextConfig, TextModel
from moe_jax.models.types import IO
from moe_jax.nn.moe_layer import MoEConfig


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(TextConfig):
    """Each token attends to itself and the earlier ones of its segment: it can predict the next
    token and generate."""

    @property
    def in_order(self) -> bool:
        return True

    def build(self, moe: MoEConfig, io: IO, mesh: Mesh, *, rngs: nnx.Rngs) -> TextModel:
        return Decoder(self, moe, mesh, rngs=rngs, io=io)


class Decoder(TextModel):
    """Token ids -> logits."""
