"""The encoder-decoder: a text read as a whole, and another one written in its order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from moe_jax.config.fields import Rule
from moe_jax.models.halves import DECODER, ENCODER, TwoHalves
from moe_jax.models.text import TextConfig, TextModel
from moe_jax.models.transformer import Passed
from moe_jax.models.types import IO, Cache, Ends, NextId, Output, RouterStates
from moe_jax.nn.context import Context, PairBatch, TokenBatch
from moe_jax.nn.cross import CrossingCache, Memory
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.nn.norm import RMSNorm


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(TwoHalves, TextConfig):
    """Sizes and numerics of an encoder-decoder.

    The encoder's tokens see all of their text; the decoder's see the earlier ones of theirs and, by
    attention in every layer, all that the encoder gives. One embedding serves both texts (with
    tie_embeddings the head too). encoder_layers: of num_layers those of the encoder; None: half of
    them. Sparse layers are counted in each of the two by itself, so moe.every = 2, moe.first = 1
    makes every second layer of both sparse: GShard (2006.16668), NLLB (2207.04672, section 6.2).

    Vaswani et al. (1706.03762), with norms before the layers, rotary positions in self-attention
    and none between the texts.
    """

    @property
    def in_order(self) -> bool:
        """Of what the decoder reads."""
        return True

    def fits(self, io: IO) -> Iterator[Rule]:
        if io.source is None or io.length is None:
            yield "kind", "reads pairs of texts, and the data or the task has none"
        elif io.source != io.length:
            yield "kind", f"reads pairs of equal length, not {io.source} and {io.length} tokens"
        if not isinstance(io.gives, NextId):
            yield "kind", "gives the next id at each place"

    def ends(self, io: IO) -> Ends:
        """With the norm behind the encoder."""
        ends = super().ends(io)
        return replace(ends, parameters=ends.parameters + self.model_dim)

    def build(self, moe: MoEConfig, io: IO, mesh: Mesh, *, rngs: nnx.Rngs) -> EncoderDecoder:
        return EncoderDecoder(self, moe, mesh, rngs=rngs, io=io)


class EncoderDecoder(TextModel):
    """Ids of a text and of its translation so far -> logits of the translation's next ids."""

    config: EncoderDecoderConfig

    def __init__(
        self,
        config: EncoderDecoderConfig,
        moe: MoEConfig,
        mesh: Mesh,
        *,
        rngs: nnx.Rngs,
        io: IO | None = None,
    ):
        super().__init__(config, moe, mesh, rngs=rngs, io=io)
        self.encoder_norm = RMSNorm(config.model_dim, rngs=rngs)

    def __call__(  # type: ignore[override]  # pairs where other models of text read rows
        self, batch: PairBatch, context: Context, router_state: RouterStates, cache: None = None
    ) -> Output:
        memory, encoded = self.encode(batch.source, context, router_state)
        return self.decode(batch.target, context, router_state, memory=memory, encoded=encoded)

    def encode(
        self, source: TokenBatch, context: Context, router_state: RouterStates
    ) -> tuple[Memory, Passed]:
        """What the decoder sees of a text, and what the encoder's layers report."""
        x_BSD, passed = self.through_part(
            ENCODER, self.embedded(source), source, context, router_state
        )
        segment_BP = jnp.asarray(source.segment_BS)
        return Memory(hidden_BPD=self.encoder_norm(x_BSD), segment_BP=segment_BP), passed

    def decode(
        self,
        target: TokenBatch,
        context: Context,
        router_state: RouterStates,
        *,
        memory: Memory | None = None,
        encoded: Passed | None = None,
        cache: Cache | None = None,
    ) -> Output:
        """Logits of the ids behind those of the target. cache: of `make_memory_cache`, in the place
        of the memory. encoded: the encoder's reports, for reports of all layers; without them the
        output has none."""
        x_BSD, decoded = self.through_part(
            DECODER, self.embedded(target), target, context, router_state, cache, memory
        )
        if encoded is None:
            output = Output(predictions=None, report=None, cache=decoded.caches)
        else:
            output = self.output_of([encoded, decoded])
        return replace(output, predictions=self.next_ids(self.final_norm(x_BSD)))

    def make_memory_cache(self, memory: Memory, P: int, copies: int = 1) -> Cache:
        """An empty cache for up to P positions of translations, `copies` of each row of the memory,
        side by side."""
        config, B = self.config, memory.hidden_BPD.shape[0] * copies
        caches = {}
        for stack in self.layout.parts[DECODER].stacks:
            tokens = config.mixer.cache(config.sizes_of(stack), B, P, self.dtype)
            if tokens is None:
                raise ValueError("this model's mixer keeps no cache")
            seen = [self.block(stack, row).cross_attention for row in range(stack.count)]
            each = [layer.seen(memory) for layer in seen if layer is not None]
            of_layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
            caches[stack.name] = CrossingCache(
                tokens=jax.tree.map(lambda leaf, n=stack.count: _times(leaf, n), tokens),
                memory=jax.tree.map(lambda leaf: jnp.repeat(leaf, copies, axis=1), of_layers),
            )
        return caches


def _times(leaf: Array, n: int) -> Array:
    return jnp.broadcast_to(leaf[None], (n, *leaf.shape))
