"""Parameters and FLOPs of a model, by formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moe_jax.models.transformer import TransformerConfig
from moe_jax.models.types import IO
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.ops.expert_ffn import GATED


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Parameters: all; those a token uses; routers; embedding and head. FLOPs per token of a
    training step (forward + backward), split into matmuls and attention."""

    total: int
    active: int
    router: int
    embedding: int
    matmul_flops: float
    attention_flops: float
    iso_flop_dense_dim: int

    @property
    def flops_per_token(self) -> float:
        return self.matmul_flops + self.attention_flops


def count(  # long: one formula, term by term
    config: TransformerConfig, moe: MoEConfig, io: IO
) -> Counts:
    """Counts of one model.

    Training FLOPs per token = 6 * (active matrix parameters, with router and head, without an
    embedding's look-up) + 12 * layers * heads * head_dim * S for non-causal attention; k experts
    per token, no padding, no recomputation. Mixtral 8x7B at S=4096: 76.49 + 6.44 = 82.93 GFLOP.
    iso_flop_dense_dim: hidden width of a dense layer with the arithmetic of the sparse one
    (k experts, the shared ones, latent projections; the router's D * E is left out).
    Experts of latent width L have L in the place of D, and 2 D L for the projections.
    In a layer where c of S tokens take part (mixture of depths) a token uses c / S of the layer's
    parameters on average, and attention, c queries on c keys, takes (c / S)^2 of its FLOPs.
    """
    D, sequence_length = config.model_dim, config.row_length(io)
    ends = config.ends(io)
    matrices = 3 if config.activation in GATED else 2
    layout = config.layout(moe)
    sparse = len(layout.moe_layers)
    c = config.depth.tokens(sequence_length)

    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    attention = D * config.head_dim * heads
    norms = 2 * D + (2 * config.head_dim if config.qk_norm else 0)
    specs = moe.router.params(D, moe.num_experts)
    router = sum(_size(spec.shape) for spec in specs.values())
    L = moe.latent_dim or D
    expert = matrices * L * moe.expert_dim
    latent = 2 * D * L if moe.latent_dim else 0
    shared = matrices * D * moe.num_shared * (moe.shared_dim or moe.expert_dim)
    depth = D * len(layout.depth_layers)
    used = round(moe.experts_per_token(sequence_length) * expert)

    common = config.num_layers * (attention + norms) + D + ends.parameters + depth
    common += (config.num_layers - sparse) * matrices * D * config.mlp_dim
    total = common + sparse * (router + moe.num_experts * expert + shared + latent)
    active = common + sparse * (router + used + shared + latent)
    # What those do not use that pass a block by.
    passed = 0.0
    for layer in layout.depth_layers:
        of_chosen = of_all = matrices * D * config.mlp_dim
        if layer in layout.moe_layers:
            of_all = router + used + shared + latent
            of_chosen = of_all - used + round(moe.experts_per_token(c) * expert)
        passed += attention + of_all - (attention + of_chosen) * c / sequence_length
    matmul = active - passed - config.num_layers * norms - D
    matmul += ends.multiplied - ends.parameters
    # From the first sparse layer on an ensemble computes every token M times.
    M = moe.ensemble if sparse else 1
    once = len(layout.before_sparse)
    matmul = M * matmul - (M - 1) * once * (attention + matrices * D * config.mlp_dim)
    attended = config.num_layers - len(layout.depth_layers) * (1 - (c / sequence_length) ** 2)
    width = moe.experts_per_token(sequence_length) * moe.expert_dim * L / D
    width += moe.num_shared * (moe.shared_dim or moe.expert_dim) + latent / (matrices * D)
    return Counts(
        total=total,
        active=round(active - passed),
        router=sparse * router + depth,
        embedding=ends.parameters,
        matmul_flops=6.0 * matmul,
        attention_flops=12.0
        * (M * attended - (M - 1) * once)
        * config.num_heads
        * config.head_dim
        * sequence_length,
        iso_flop_dense_dim=round(width) if sparse else config.mlp_dim,
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dimension in shape:
        size *= dimension
    return size


def summary(counts: Counts) -> dict[str, Any]:
    """The lines printed at the start of a run."""
    return {
        "parameters": f"{counts.total:,} total, {counts.active:,} active per token, "
        f"{counts.router:,} router, {counts.embedding:,} embedding and head",
        "training FLOPs per token": f"{counts.flops_per_token:,.0f}",
        "iso-FLOP dense width": f"{counts.iso_flop_dense_dim}",
    }
