"""Models of rows of token ids: an embedding, the layers, and a head over ids or over classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule, at_least, one_of
from moe_jax.models.transformer import Transformer, TransformerConfig
from moe_jax.models.types import (
    IO,
    Cache,
    Ends,
    NextId,
    Output,
    RouterStates,
    RowClass,
    RowLabels,
    of_rows,
)
from moe_jax.nn.context import Context, TokenBatch
from moe_jax.nn.ensemble import AnyPredictions
from moe_jax.nn.head import POOLINGS, ClassHead
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.nn.param import parameter
from moe_jax.nn.predictions import Predictions, chunks_of
from moe_jax.ops.embedding import rows_of_table
from moe_jax.ops.initializers import Initializer, fan_in
from moe_jax.parallel.rules import RULES, mesh_size, sharding


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """Sizes and numerics of a model of text.

    vocab_size may exceed the tokenizer's (a multiple of 8 shards better); 0: what the tokenizer
    needs, in whole eights, and 264 where that is less. logits_chunks: parts of the vocabulary that
    the loss takes one after the other, dividing vocab_size (on a mesh, a device's part of it);
    None: as many as keep a device's float32 logits within 256 MiB; the numbers differ by rounding.
    pooling: for one prediction a row, what of its tokens the head sees, see nn/head.py.
    """

    vocab_size: int = 0
    rope_theta: float = 10000.0
    tie_embeddings: bool = False
    logits_chunks: int | None = None
    pooling: str = "mean"

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 1, "logits_chunks")
        yield from at_least(self, 0, "vocab_size")
        if self.logits_chunks and self.vocab_size % self.logits_chunks:
            yield "logits_chunks", f"must divide vocab_size = {self.vocab_size}"
        yield from one_of(self, POOLINGS, "pooling")
        if self.head_dim % 2:
            yield "head_dim", "must be even (rotary positions turn pairs)"
        if self.rope_theta <= 0:
            yield "rope_theta", "must be above 0"

    @property
    def rotary_theta(self) -> float:
        return self.rope_theta

    def fits(self, io: IO) -> Iterator[Rule]:
        if io.length is None:
            yield "kind", "reads rows of text, and the data has none"
        if io.source is not None:
            yield "kind", "reads no pairs of texts: that is model.kind = encoder_decoder"
        if not isinstance(io.gives, NextId | RowClass | RowLabels):
            yield "kind", "gives the next id at each place, or a class or labels for each row"
        if io.predicts_next and not self.in_order:
            yield "kind", "sees later tokens, so it cannot predict the next one"

    def row_length(self, io: IO) -> int:
        return io.length or 0

    def ends(self, io: IO) -> Ends:
        table = self.vocab_size * self.model_dim
        if io.classes is not None:
            head = self.model_dim * io.classes
            return Ends(parameters=table + head, multiplied=head / max(self.row_length(io), 1))
        return Ends(parameters=table * (1 if self.tie_embeddings else 2), multiplied=table)


class TextModel(Transformer):
    """Token ids -> logits over the vocabulary at each place, or over classes for each row."""

    config: TextConfig

    def __init__(
        self,
        config: TextConfig,
        moe: MoEConfig,
        mesh: Mesh,
        *,
        rngs: nnx.Rngs,
        io: IO | None = None,
    ):
        super().__init__(config, moe, mesh, rngs=rngs)
        D, V = config.model_dim, config.vocab_size
        classes = None if io is None else io.classes
        self.gives = None if io is None else io.gives
        self.classes = (
            ClassHead(D, classes, config.pooling, init_scale=config.init_scale, rngs=rngs)
            if classes is not None
            else None
        )
        self.head = (
            self._table(rngs, fan_in(config.init_scale), (D, V), ("embed", "vocab"))
            if classes is None and not config.tie_embeddings
            else None
        )

    def make_input(self, rngs: nnx.Rngs) -> None:
        # Unit-variance logits at the start: rows of the embedding have norm 1 (variance 1 / D).
        D, V = self.config.model_dim, self.config.vocab_size
        init = jax.nn.initializers.normal(D**-0.5)
        self.embedding = self._table(rngs, init, (V, D), ("vocab", "embed"))

    def _table(
        self, rngs: nnx.Rngs, init: Initializer, shape: tuple[int, int], axes: tuple[str, str]
    ) -> nnx.Param:
        weights = partial(parameter, rngs, dtype=self.param_dtype, matrix=((0,), (1,)), decays=True)
        return weights(init, shape, axes)

    def make_cache(self, B: int, P: int) -> Cache:
        """An empty cache for B rows of up to P positions. ValueError where the mixer has none."""
        config, members = self.config, self.layout.ensemble.members
        caches = {}
        for stack in self.layout.stacks:
            rows = B if stack in self.layout.before_sparse else B * members
            cache = config.mixer.cache(config.sizes_of(stack), rows, P, self.dtype)
            if cache is None:
                raise ValueError("this model's mixer keeps no cache")
            caches[stack.name] = jax.tree.map(
                lambda leaf, n=stack.count: jnp.broadcast_to(leaf[None], (n, *leaf.shape)), cache
            )
        return caches

    def __call__(
        self,
        batch: TokenBatch,
        context: Context,
        router_state: RouterStates,
        cache: Cache | None = None,
    ) -> Output:
        x_BSD = self.embedded(batch)
        x_BSD, output = self.through_layers(x_BSD, batch, context, router_state, cache)
        if self.classes is not None:
            valid_BS = self.layout.ensemble.rows(jnp.asarray(batch.segment_BS) > 0)
            logits_BC = self.classes(x_BSD, valid_BS)
            predictions: AnyPredictions = of_rows(self.gives, logits_BC)
        else:
            predictions = self.next_ids(x_BSD)
        return replace(output, predictions=self.predicted(predictions, context))

    def embedded(self, batch: TokenBatch) -> Float[Array, "B S D"]:
        """The tokens as the layers take them."""
        x_BSD = rows_of_table(self._embedding_table(), jnp.asarray(batch.token_BS), self.dtype)
        # Embedding rows have norm 1; the blocks expect elements of variance 1.
        return x_BSD * jnp.asarray(self.config.model_dim**0.5, self.dtype)

    def next_ids(self, x_BSD: Float[Array, "B S D"]) -> Predictions:
        """What the head makes of the last hidden states."""
        head_DV = self.embedding[...].T if self.head is None else self.head[...]
        (B, S, _), V = x_BSD.shape, head_DV.shape[1]
        shards = mesh_size(self.mesh, RULES["vocab"])
        rows = mesh_size(self.mesh, RULES["batch"]) * mesh_size(self.mesh, RULES["position"])
        return Predictions(
            hidden_BSD=x_BSD,
            head_DV=head_DV,
            chunks=chunks_of(V, -(-B * S // rows), shards, self.config.logits_chunks),
            shards=shards,
        )

    def _embedding_table(self) -> Array:
        """The embedding, whole along D: where `fsdp` splits the table as well as the rows of the
        batch, XLA would gather the whole vocabulary on every device to look them up."""
        table_VD = self.embedding[...]
        target = sharding(self.mesh, ("vocab", "model"), table_VD.shape, "embedding")
        return jax.lax.with_sharding_constraint(table_VD, target)
