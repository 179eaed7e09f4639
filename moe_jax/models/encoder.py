"""The encoder: a model of text whose tokens see all of their segment."""

from __future__ import annotations

from dataclasses import dataclass

from flax import nnx
from jax.sharding import Mesh

from moe_jax.models.text import TextConfig, TextModel
from moe_jax.models.types import IO
from moe_jax.nn.moe_layer import MoEConfig


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(TextConfig):
    """Each token attends to all tokens of its segment, earlier and later: for one prediction a row.
    It cannot predict the next token."""

    def build(self, moe: MoEConfig, io: IO, mesh: Mesh, *, rngs: nnx.Rngs) -> TextModel:
        return Encoder(self, moe, mesh, rngs=rngs, io=io)


class Encoder(TextModel):
    """Token ids -> logits of classes."""
