"""Parameters and FLOPs of a model, by formula."""

from __future__ import annotations

from dataclasses import dataclass

from moe_jax.models.layout import Layout
from moe_jax.models.transformer import TransformerConfig
from moe_jax.models.types import IO
from moe_jax.nn.cost import Cost, total
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.ops.expert_ffn import GATED


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Parameters: all; those a token uses; routers; embedding and head. FLOPs per token of a
    training step (forward + backward), split into matmuls and attention; routed: of the matmuls
    those of chosen experts."""

    total: int
    active: int
    router: int
    embedding: int
    matmul_flops: float
    attention_flops: float
    routed_flops: float
    iso_flop_dense_dim: int

    @property
    def flops_per_token(self) -> float:
        return self.matmul_flops + self.attention_flops


def count(config: TransformerConfig, moe: MoEConfig, io: IO) -> Counts:
    """Counts of one model, the sum of what its layers say (`nn.cost.Cost`).

    Training FLOPs per token = 6 * (active matrix parameters, with router and head, without an
    embedding's look-up) + 12 * layers * heads * head_dim * S for non-causal attention; k experts
    per token, no padding, no recomputation. Mixtral 8x7B at S=4096: 76.49 + 6.44 = 82.93 GFLOP.
    iso_flop_dense_dim: hidden width of a dense layer with the arithmetic of the sparse one
    (k experts, the shared ones, latent projections; the router's D * E is left out).
    In a layer where c of S tokens take part (mixture of depths) a token uses c / S of the layer's
    parameters on average, and attention, c queries on c keys, takes (c / S)^2 of its FLOPs.
    From the first sparse layer on an ensemble computes every token M times.
    """
    S, ends = config.row_length(io), config.ends(io)
    layout = config.layout(moe)
    once = len(layout.before_sparse)
    blocks = [_block(config, moe, layout, layer, io) for layer in range(config.num_layers)]
    model = total([*blocks, Cost.of_vectors(config.norms())])
    shared = total(blocks[:once])
    copied = layout.ensemble.cost(total(blocks[once:]) + Cost(multiplied=ends.multiplied))
    return Counts(
        total=round(model.parameters + ends.parameters),
        active=round(model.active + ends.parameters),
        router=round(model.router),
        embedding=ends.parameters,
        matmul_flops=6.0 * (shared.multiplied + copied.multiplied),
        attention_flops=shared.attended + copied.attended,
        routed_flops=6.0 * copied.routed,
        iso_flop_dense_dim=_dense_dim(config, moe, S) if layout.moe_layers else config.mlp_dim,
    )


def _block(config: TransformerConfig, moe: MoEConfig, layout: Layout, layer: int, io: IO) -> Cost:
    stack, S = layout.stack_of(layer), config.row_length(io)
    if stack.depth:
        return config.depth.cost(
            lambda c: config.block_cost(stack, moe, c, io), config.model_dim, S
        )
    return config.block_cost(stack, moe, S, io)


def _dense_dim(config: TransformerConfig, moe: MoEConfig, S: int) -> int:
    """The hidden width at which a dense layer multiplies as much as the sparse one's experts."""
    of_layer = moe.cost(config.model_dim, config.activation, S)
    a_column = (3 if config.activation in GATED else 2) * config.model_dim
    return round((of_layer.multiplied - of_layer.router) / a_column)


def summary(counts: Counts) -> dict[str, str]:
    """The lines printed at the start of a run."""
    return {
        "parameters": f"{counts.total:,} total, {counts.active:,} active per token, "
        f"{counts.router:,} router, {counts.embedding:,} embedding and head",
        "training FLOPs per token": f"{counts.flops_per_token:,.0f}",
        "iso-FLOP dense width": f"{counts.iso_flop_dense_dim}",
    }
