"""One transformer layer: a token mixer, perhaps attention to a memory, then a dense or a sparse
feed-forward; for all tokens of a row or, with a mixture of depths, for some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from moe_jax.nn.context import Context, LayerReport, TokenBatch
from moe_jax.nn.cross import CrossAttention, CrossingCache, Memory
from moe_jax.nn.depth import DepthReport, DepthRouter
from moe_jax.nn.mlp import MLP
from moe_jax.nn.moe_layer import MoELayer
from moe_jax.nn.norm import RMSNorm


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """What a block tells beside its output: of its sparse layer and of its router of depths, where
    it has them."""

    moe: LayerReport | None = None
    depth: DepthReport | None = None


class Block(nnx.Module):
    """h = x + mix(norm(x)), with a memory h = h + cross(norm(h), memory), then
    y = h + feed_forward(norm(h)).

    mixer: makes a `Mixes`. cross: makes the attention to a memory. feed_forward: makes an MLP or a
    MoELayer. depth: makes the router of a mixture of depths: then only the chosen tokens take part,
    in attention too, and each gets x + r (y - x) with its weight r; the others stay x.
    """

    def __init__(
        self,
        model_dim: int,
        *,
        mixer: Callable[[nnx.Rngs], nnx.Module],
        feed_forward: Callable[[nnx.Rngs], MLP | MoELayer],
        cross: Callable[[nnx.Rngs], CrossAttention] | None = None,
        depth: Callable[[nnx.Rngs], DepthRouter] | None = None,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = RMSNorm(model_dim, rngs=rngs)
        self.attention = mixer(rngs)
        self.cross_norm = None if cross is None else RMSNorm(model_dim, rngs=rngs)
        self.cross_attention = None if cross is None else cross(rngs)
        self.mlp_norm = RMSNorm(model_dim, rngs=rngs)
        layer = feed_forward(rngs)
        self.moe = layer if isinstance(layer, MoELayer) else None
        self.mlp = layer if isinstance(layer, MLP) else None
        self.router = None if depth is None else depth(rngs)

    def __call__(
        self,
        x_BSD: Float[Array, "B S D"],
        batch: TokenBatch,
        context: Context,
        router_state: Mapping[str, Array],
        layer: Int[Array, ""],
        cache: PyTree[Array] | None = None,
        memory: Memory | None = None,
    ) -> tuple[Float[Array, "B S D"], BlockReport, PyTree[Array] | None]:
        """memory: of a block with attention to one; a cache has it instead."""
        if self.router is None:
            h_BSD, y_BSD, report, cache = self._parts(
                x_BSD, batch, context, router_state, layer, cache, memory=memory
            )
            return x_BSD + h_BSD + y_BSD, BlockReport(moe=report), cache
        if cache is not None:
            raise ValueError("a mixture of depths looks at later tokens: it cannot decode")

        def parts(
            x_BCD: Array, batch: TokenBatch, context: Context, span: int
        ) -> tuple[Array, Array, LayerReport | None]:
            return self._parts(x_BCD, batch, context, router_state, layer, None, span, memory)[:3]

        x_BSD, report, depth = self.router.around(parts, x_BSD, batch, context)
        return x_BSD, BlockReport(moe=report, depth=depth), None

    def _parts(
        self,
        x_BSD: Float[Array, "B S D"],
        batch: TokenBatch,
        context: Context,
        router_state: Mapping[str, Array],
        layer: Int[Array, ""],
        cache: PyTree[Array] | None,
        span: int | None = None,
        memory: Memory | None = None,
    ) -> tuple[Array, Array, LayerReport | None, PyTree[Array] | None]:
        """What attention and what the feed-forward layer add to x."""
        h_BSD, cache = self._attention(x_BSD, batch, cache, span, memory)
        # Named for remat policies: the residual stream after attention is cheap to keep.
        h_BSD = jax.ad_checkpoint.checkpoint_name(h_BSD, "attention_out")
        inner_BSD = self.mlp_norm(x_BSD + h_BSD)
        if self.moe is None:
            assert self.mlp is not None
            return h_BSD, self.mlp(inner_BSD), None, cache
        y_BSD, report = self.moe(inner_BSD, batch, context, router_state, layer)
        return h_BSD, y_BSD, report, cache

    def _attention(
        self,
        x_BSD: Float[Array, "B S D"],
        batch: TokenBatch,
        cache: PyTree[Array] | None,
        span: int | None,
        memory: Memory | None,
    ) -> tuple[Array, PyTree[Array] | None]:
        """What the mixer and the attention to a memory add to x, and the next cache."""
        mix: Any = self.attention  # called as `Mixes`
        inner_BSD, place = self.attention_norm(x_BSD), (batch.position_BS, batch.segment_BS)
        if self.cross_attention is None or self.cross_norm is None:
            h_BSD, cache = mix(inner_BSD, *place, cache, span)
            return h_BSD, cache
        tokens = None if cache is None else cache.tokens
        h_BSD, tokens = mix(inner_BSD, *place, tokens, span)
        if cache is not None:
            seen, cache = cache.memory, CrossingCache(tokens=tokens, memory=cache.memory)
        else:
            assert memory is not None, "this block attends to a memory"
            seen = self.cross_attention.seen(memory)
        inner_BSD = self.cross_norm(x_BSD + h_BSD)
        return h_BSD + self.cross_attention(inner_BSD, batch.segment_BS, seen), cache
