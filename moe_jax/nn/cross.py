"""Attention from the tokens of a row to a memory: what another part of the model made of it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from moe_jax.nn.attention import projected_columns
from moe_jax.nn.cost import Cost, Here, Planned
from moe_jax.nn.mixer import RowSizes
from moe_jax.nn.norm import RMSNorm
from moe_jax.nn.param import parameter
from moe_jax.ops.attention import attend_memory, query_block
from moe_jax.ops.initializers import fan_in
from moe_jax.ops.linear import linear
from moe_jax.parallel.rules import RULES, mesh_size


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is attended to: P places a row. A token sees those of its own segment."""

    hidden_BPD: Float[Array, "B P D"]
    segment_BP: Int[Array, "B P"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SeenMemory:
    """Keys and values of a memory, as one layer makes them."""

    key_BPMH: Float[Array, "*L B P M H"]
    value_BPMH: Float[Array, "*L B P M H"]
    segment_BP: Int[Array, "*L B P"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CrossingCache:
    """Of a block that attends to a memory too: of its own tokens so far, and of the memory, whose
    keys and values are made once."""

    tokens: PyTree[Array]
    memory: SeenMemory


class CrossAttention(nnx.Module):
    """softmax(q k / sqrt(H)) v with q of the tokens, k and v of a memory; no positions, N query
    heads share M key/value heads. Vaswani et al. (1706.03762), section 3.2.3.

    qk_norm as in nn/attention.py.
    """

    def __init__(self, sizes: RowSizes, mesh: Mesh, rngs: nnx.Rngs):
        D, N = sizes.model_dim, sizes.num_heads
        M, H = sizes.num_kv_heads, sizes.head_dim
        inward = fan_in(sizes.init_scale, in_axis=0, out_axis=(1, 2))
        outward = fan_in(sizes.init_scale, in_axis=(0, 1))
        weights = functools.partial(parameter, rngs, decays=True)
        from_D = functools.partial(weights, inward, matrix=((0,), (1, 2)))
        self.wq = from_D((D, N, H), ("embed", "heads", "head_dim"))
        self.wk = from_D((D, M, H), ("embed", "kv_heads", "head_dim"))
        self.wv = from_D((D, M, H), ("embed", "kv_heads", "head_dim"))
        out_axes = ("heads", "head_dim", "embed")
        self.wo = weights(outward, (N, H, D), out_axes, matrix=((0, 1), (2,)))
        self.query_norm = RMSNorm(H, rngs=rngs) if sizes.qk_norm else None
        self.key_norm = RMSNorm(H, rngs=rngs) if sizes.qk_norm else None
        self.mesh = mesh

    def seen(self, memory: Memory) -> SeenMemory:
        """The keys and values of a memory."""
        key = _project(self.wk, memory.hidden_BPD)
        if self.key_norm is not None:
            key = self.key_norm(key)
        return SeenMemory(
            key_BPMH=key,
            value_BPMH=_project(self.wv, memory.hidden_BPD),
            segment_BP=jnp.asarray(memory.segment_BP),
        )

    def __call__(
        self, x_BSD: Float[Array, "B S D"], segment_BS: Int[Array, "B S"], memory: SeenMemory
    ) -> Float[Array, "B S D"]:
        query = _project(self.wq, x_BSD)
        if self.query_norm is not None:
            query = self.query_norm(query)
        block = query_block(x_BSD.shape[1], mesh_size(self.mesh, RULES["position"]) > 1)
        out_BSNH = attend_memory(
            query,
            memory.key_BPMH,
            memory.value_BPMH,
            jnp.asarray(segment_BS),
            memory.segment_BP,
            block,
        )
        w_NHD = self.wo[...]
        out_BSK = out_BSNH.reshape(*x_BSD.shape[:2], -1)
        return linear(out_BSK, w_NHD.reshape(-1, w_NHD.shape[-1]), True)


def _project(weight: nnx.Param[Array], x_BSD: Array) -> Array:
    w_DNH = weight[...]
    y_BSK = linear(x_BSD, w_DNH.reshape(w_DNH.shape[0], -1))
    return y_BSK.reshape(*x_BSD.shape[:2], *w_DNH.shape[1:])


def cross_cost(sizes: RowSizes, P: int) -> Cost:
    """Of tokens to a memory of P places, as many as there are tokens: keys and values are made of
    the memory."""
    norms = 2 * sizes.head_dim if sizes.qk_norm else 0
    matrices = sizes.model_dim * projected_columns(sizes)
    attended = 12.0 * sizes.num_heads * sizes.head_dim * P
    return Cost.of_matrices(matrices) + Cost.of_vectors(norms) + Cost(attended=attended)


def cross_planned(sizes: RowSizes, here: Here) -> Planned:
    """As self-attention that is not causal (nn/attention.py)."""
    block = query_block(here.row, here.sequence > 1)
    projected = here.tokens * projected_columns(sizes) / here.tensor * here.bytes
    logits = here.tokens * block * sizes.num_heads / here.tensor * (4 + here.bytes)
    summed = (here.forward + 3) * here.tokens * sizes.model_dim * here.bytes
    width = 2 * sizes.num_kv_heads * sizes.head_dim / here.tensor
    return Planned(
        kept=projected + logits,
        products=projected,
        summed=summed,
        exchanged=here.tokens * width * here.bytes,
    )
