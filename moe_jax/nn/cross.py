"""Attention from the tokens of a row to a memory: what another part of the model made of it."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from moe_jax.nn.attention import HeadProjections
from moe_jax.ops.attention import attend_memory, query_block
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


class CrossAttention(HeadProjections):
    """softmax(q k / sqrt(H)) v with q of the tokens, k and v of a memory; no positions, N query
    heads share M key/value heads. Vaswani et al. (1706.03762), section 3.2.3.

    Parameters, qk_norm and costs are those of self-attention that is not causal (nn/attention.py).
    """

    def seen(self, memory: Memory) -> SeenMemory:
        """The keys and values of a memory."""
        return SeenMemory(
            key_BPMH=self.keys(memory.hidden_BPD),
            value_BPMH=self.values(memory.hidden_BPD),
            segment_BP=jnp.asarray(memory.segment_BP),
        )

    def __call__(
        self, x_BSD: Float[Array, "B S D"], segment_BS: Int[Array, "B S"], memory: SeenMemory
    ) -> Float[Array, "B S D"]:
        block = query_block(x_BSD.shape[1], mesh_size(self.mesh, RULES["position"]) > 1)
        out_BSNH = attend_memory(
            self.queries(x_BSD),
            memory.key_BPMH,
            memory.value_BPMH,
            jnp.asarray(segment_BS),
            memory.segment_BP,
            block,
        )
        return self.joined(out_BSNH)
