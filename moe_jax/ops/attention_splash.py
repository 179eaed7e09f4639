"""Causal attention within segments by JAX's splash kernel for TPU (Pallas).

Blocks of keys behind a block of queries are skipped, and no logits leave the chip's fast memory,
forward or backward. Off TPU the interpreter runs it, for tests.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jaxtyping import Array, Float, Int

TILE, MAX_BLOCK = 128, 512  # positions of a block: a multiple of TILE that divides the row


def splash_fits(S: int) -> bool:
    """Whether rows of S positions can be cut into the kernel's blocks."""
    return S % TILE == 0


def attend_splash(
    query_BSNH: Float[Array, "B S N H"],
    key_BSMH: Float[Array, "B S M H"],
    value_BSMH: Float[Array, "B S M H"],
    segment_BS: Int[Array, "B S"],
    interpret: bool = False,
) -> Float[Array, "B S N H"]:
    """As `attention.attend_rows`: softmax(q k / sqrt(H)) v over the earlier tokens of the same
    segment, logits and softmax in float32. S must be a multiple of 128 (ValueError)."""
    _, S, N, H = query_BSNH.shape
    if not splash_fits(S):
        raise ValueError(f"splash attention: rows of a multiple of {TILE} positions, not {S}")
    block = next(b for b in range(min(S, MAX_BLOCK), 0, -TILE) if S % b == 0)
    query_BSNH = query_BSNH * jnp.asarray(H**-0.5, query_BSNH.dtype)
    # The kernel mixes types and ranks, which a program of ours may have forbidden.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        kernel = make_splash_mha(
            MultiHeadMask([CausalMask((S, S)) for _ in range(N)]),
            block_sizes=BlockSizes(
                block_q=block,
                block_kv=block,
                block_kv_compute=block,
                block_q_dkv=block,
                block_kv_dkv=block,
                block_kv_dkv_compute=block,
                block_q_dq=block,
                block_kv_dq=block,
            ),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        heads_first = (x.swapaxes(1, 2) for x in (query_BSNH, key_BSMH, value_BSMH))
        out_BNSH = jax.vmap(kernel)(*heads_first, SegmentIds(q=segment_BS, kv=segment_BS))
    return out_BNSH.swapaxes(1, 2)
