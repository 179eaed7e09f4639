"""Models of two halves: an encoder, and a decoder that attends to what it gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moe_jax.config.fields import Rule, at_least
from moe_jax.models.layout import Layout, joined, layout_of
from moe_jax.models.transformer import TransformerConfig
from moe_jax.nn.moe_layer import MoEConfig

ENCODER, DECODER = 0, 1  # the parts of the layout


@dataclass(frozen=True, kw_only=True)
class TwoHalves(TransformerConfig):
    """encoder_layers: of num_layers those of the encoder; None: half of them. Sparse layers are
    counted in each half by itself. `in_order` is of the decoder."""

    encoder_layers: int | None = None

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "encoder_layers")
        if self.num_layers == 1:
            yield "num_layers", "must be at least 2, one for each of encoder and decoder"
        elif self.encoder_layers is not None and self.encoder_layers >= self.num_layers:
            yield "encoder_layers", f"must be below num_layers = {self.num_layers}"
        if self.depth.every:
            yield "depth.every", "must be 0: an encoder-decoder has no mixture of depths"

    @property
    def layers_of_encoder(self) -> int:
        return self.num_layers // 2 if self.encoder_layers is None else self.encoder_layers

    def layout(self, moe: MoEConfig) -> Layout:
        """The encoder's layers, then the decoder's."""
        here = max(min(self.layers_of_encoder, self.num_layers), 0)
        there = max(self.num_layers - here, 0)
        encoder = layout_of(here, moe, name="encoder")
        causal = self.in_order
        decoder = layout_of(there, moe, causal=causal, crosses=True, behind=here, name="decoder")
        return joined(encoder, decoder)
