"""One transformer layer: attention, then a dense or a sparse feed-forward; for all tokens of a
row or, with a mixture of depths, for some."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from moe_jax.nn.attention import Attention, KeyValueCache
from moe_jax.nn.context import Context, DepthReport, LayerReport, TokenBatch
from moe_jax.nn.depth import Chosen, DepthRouter, MixtureOfDepths
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
    """h = x + attention(norm(x)), then y = h + feed_forward(norm(h)).

    With `depth` only the chosen tokens take part, in attention too, and each gets x + r (y - x)
    with its weight r; the others stay x.
    """

    def __init__(
        self,
        *,
        model_dim: int,
        attention: Mapping[str, Any],
        feed_forward: type[MLP] | type[MoELayer],
        feed_forward_options: Mapping[str, Any],
        rngs: nnx.Rngs,
        depth: MixtureOfDepths | None = None,
        mesh: Mesh | None = None,
    ):
        self.attention_norm = RMSNorm(model_dim, rngs=rngs)
        self.attention = Attention(model_dim=model_dim, rngs=rngs, **attention)
        self.mlp_norm = RMSNorm(model_dim, rngs=rngs)
        layer = feed_forward(model_dim=model_dim, rngs=rngs, **feed_forward_options)
        self.moe = layer if isinstance(layer, MoELayer) else None
        self.mlp = layer if isinstance(layer, MLP) else None
        router = None
        if depth is not None:
            assert mesh is not None
            router = DepthRouter(depth, model_dim, mesh, rngs)
        self.router = router

    def __call__(
        self,
        x_BSD: Float[Array, "B S D"],
        batch: TokenBatch,
        context: Context,
        router_state: Mapping[str, Array],
        layer: Int[Array, ""],
        cache: KeyValueCache | None = None,
    ) -> tuple[Float[Array, "B S D"], BlockReport, KeyValueCache | None]:
        if self.router is None:
            h_BSD, y_BSD, report, cache = self._parts(
                x_BSD, batch, context, router_state, layer, cache
            )
            return x_BSD + h_BSD + y_BSD, BlockReport(moe=report), cache
        if cache is not None:
            raise ValueError("a mixture of depths looks at later tokens: it cannot decode")
        x_BCD, batch, chosen, depth = self.router.gather(x_BSD, batch)
        h_BCD, y_BCD, report, _ = self._parts(
            x_BCD, batch, _of_chosen(context, chosen), router_state, layer, None, x_BSD.shape[1]
        )
        if report is not None and report.routes is not None:
            routes = self.router.spread(report.routes, chosen, x_BSD.shape[1])
            report = dataclasses.replace(report, routes=routes)
        x_BSD = self.router.scatter_add(x_BSD, h_BCD + y_BCD, chosen)
        return x_BSD, BlockReport(moe=report, depth=depth), None

    def _parts(
        self,
        x_BSD: Float[Array, "B S D"],
        batch: TokenBatch,
        context: Context,
        router_state: Mapping[str, Array],
        layer: Int[Array, ""],
        cache: KeyValueCache | None,
        span: int | None = None,
    ) -> tuple[Array, Array, LayerReport | None, KeyValueCache | None]:
        """What attention and what the feed-forward layer add to x."""
        h_BSD, cache = self.attention(
            self.attention_norm(x_BSD), batch.position_BS, batch.segment_BS, cache, span
        )
        # Named for remat policies: the residual stream after attention is cheap to keep.
        h_BSD = jax.ad_checkpoint.checkpoint_name(h_BSD, "attention_out")
        inner_BSD = self.mlp_norm(x_BSD + h_BSD)
        if self.moe is None:
            assert self.mlp is not None
            return h_BSD, self.mlp(inner_BSD), None, cache
        y_BSD, report = self.moe(inner_BSD, batch, context, router_state, layer)
        return h_BSD, y_BSD, report, cache


def _of_chosen(context: Context, chosen: Chosen) -> Context:
    """The context with the recorded routes of the chosen tokens alone."""

    def take(leaf_LBSK: Array) -> Array:
        return jnp.take_along_axis(leaf_LBSK, chosen.place_BC[None, :, :, None], axis=2)

    return dataclasses.replace(context, recorded=jax.tree.map(take, context.recorded))
