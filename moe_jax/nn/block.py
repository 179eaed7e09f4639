"""One transformer layer: attention, then a dense or a sparse feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from moe_jax.nn.attention import Attention, KeyValueCache
from moe_jax.nn.context import Context, LayerReport, TokenBatch
from moe_jax.nn.mlp import MLP
from moe_jax.nn.moe_layer import MoELayer
from moe_jax.nn.norm import RMSNorm


class Block(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(
        self,
        *,
        model_dim: int,
        attention: Mapping[str, Any],
        feed_forward: type[MLP] | type[MoELayer],
        feed_forward_options: Mapping[str, Any],
        rngs: nnx.Rngs,
    ):
        self.attention_norm = RMSNorm(model_dim, rngs=rngs)
        self.attention = Attention(model_dim=model_dim, rngs=rngs, **attention)
        self.mlp_norm = RMSNorm(model_dim, rngs=rngs)
        layer = feed_forward(model_dim=model_dim, rngs=rngs, **feed_forward_options)
        self.moe = layer if isinstance(layer, MoELayer) else None
        self.mlp = layer if isinstance(layer, MLP) else None

    def __call__(
        self,
        x_BSD: Float[Array, "B S D"],
        batch: TokenBatch,
        context: Context,
        router_state: Mapping[str, Array],
        layer: Int[Array, ""],
        cache: KeyValueCache | None = None,
    ) -> tuple[Float[Array, "B S D"], LayerReport | None, KeyValueCache | None]:
        h_BSD, cache = self.attention(
            self.attention_norm(x_BSD), batch.position_BS, batch.segment_BS, cache
        )
        # Named for remat policies: the residual stream after attention is cheap to keep.
        x_BSD = x_BSD + jax.ad_checkpoint.checkpoint_name(h_BSD, "attention_out")
        h_BSD = self.mlp_norm(x_BSD)
        if self.moe is None:
            assert self.mlp is not None
            return x_BSD + self.mlp(h_BSD), None, cache
        y_BSD, report = self.moe(h_BSD, batch, context, router_state, layer)
        return x_BSD + y_BSD, report, cache
