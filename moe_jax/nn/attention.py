"""Grouped-query attention with rotary positions, segments and a key/value cache."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from moe_jax.nn.norm import RMSNorm
from moe_jax.nn.param import fan_in, parameter

# Blocks of queries in causal attention: more of them skip more, and take longer to compile.
LEAST_BLOCK, MOST_BLOCKS = 64, 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class KeyValueCache:
    """Keys and values of the positions so far; `length` of the P places are filled."""

    key_BPMH: Float[Array, "*L B P M H"]
    value_BPMH: Float[Array, "*L B P M H"]
    length: Int[Array, "*L"]


def rotate(x_BSNH: Float[Array, "B S N H"], position_BS: Int[Array, "B S"], theta: float) -> Array:
    """Rotary position embedding in float32, halves convention (pair i with i + H/2), as in Llama
    and Hugging Face. Su et al. (2104.09864) eq. 34."""
    half = x_BSNH.shape[-1] // 2
    frequency_H = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BS1H = position_BS.astype(jnp.float32)[:, :, None, None] * frequency_H[None, None, None]
    cos, sin = jnp.cos(angle_BS1H), jnp.sin(angle_BS1H)
    first, second = jnp.split(x_BSNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BSNH.dtype)


def attend(
    query_BNSH: Float[Array, "B N S H"],
    key_BMPH: Float[Array, "B M P H"],
    value_BMPH: Float[Array, "B M P H"],
    mask_BSP: Array,
) -> Float[Array, "B N S H"]:
    """softmax(q k / sqrt(H)) v with N / M queries per key head; logits and softmax in float32."""
    (B, N, S, H), (_, M, P, _) = query_BNSH.shape, key_BMPH.shape
    Q = N // M
    # The queries of one key head as one dimension of rows: on CPU a product with two of them is
    # transposed first. Positions before heads, so that a split of the positions stays one.
    query_BMRH = query_BNSH.reshape(B, M, Q, S, H).swapaxes(2, 3).reshape(B, M, S * Q, H)
    logits_BMRP = jnp.einsum(
        "BMRH,BMPH->BMRP", query_BMRH, key_BMPH, preferred_element_type=jnp.float32
    ) * (H**-0.5)
    logits_BMSQP = logits_BMRP.reshape(B, M, S, Q, P)
    logits_BMSQP = jnp.where(mask_BSP[:, None, :, None, :], logits_BMSQP, -1e30)
    share_BMSQP = jax.nn.softmax(logits_BMSQP, axis=-1).astype(value_BMPH.dtype)
    out_BMRH = jnp.einsum("BMRP,BMPH->BMRH", share_BMSQP.reshape(B, M, S * Q, P), value_BMPH)
    return out_BMRH.reshape(B, M, S, Q, H).swapaxes(2, 3).reshape(B, N, S, H)


def query_block(S: int, split: bool = False) -> int:
    """Queries that attend at once: an eighth of the row, at least 64; all where the row is split
    over devices, each of which has its part of the queries."""
    return S if split else max(LEAST_BLOCK, -(-S // MOST_BLOCKS))


def attend_causally(
    query_BNSH: Float[Array, "B N S H"],
    key_BMSH: Float[Array, "B M S H"],
    value_BMSH: Float[Array, "B M S H"],
    segment_BS: Int[Array, "B S"],
    block: int,
) -> Float[Array, "B N S H"]:
    """`attend` of every token to itself and the earlier ones of its segment.

    Blocks of queries skip the keys behind them: with n blocks (n + 1) / 2n of the logits are
    computed. None are kept for the backward pass, which computes them again (on CPU that takes no
    longer than to read them; Dao et al., 2205.14135, on GPU).
    """
    S = query_BNSH.shape[2]
    place_S = jnp.arange(S, dtype=jnp.int32)
    run = jax.checkpoint(attend)
    done = []
    for start in range(0, S, block):
        end = min(start + block, S)
        own = slice(start, end)
        mask_BSP = segment_BS[:, own, None] == segment_BS[:, None, :end]
        mask_BSP &= (place_S[own, None] >= place_S[None, :end])[None]
        query = query_BNSH[:, :, own]
        done.append(run(query, key_BMSH[:, :, :end], value_BMSH[:, :, :end], mask_BSP))
    return done[0] if len(done) == 1 else jnp.concatenate(done, axis=2)


class Attention(nnx.Module):
    """Causal self-attention within segments. N query heads share M key/value heads.

    `qk_norm` normalises queries and keys per head before the rotation (OLMoE, Qwen3).
    `split_rows`: the positions of a row are spread over devices.
    """

    def __init__(
        self,
        *,
        model_dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope_theta: float,
        qk_norm: bool,
        init_scale: float,
        dtype: jnp.dtype,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
        split_rows: bool = False,
    ):
        D, N, M, H = model_dim, num_heads, num_kv_heads, head_dim
        inward = fan_in(init_scale, in_axis=0, out_axis=(1, 2))
        outward = fan_in(init_scale, in_axis=(0, 1))
        self.wq = parameter(rngs, inward, (D, N, H), ("embed", "heads", "head_dim"), param_dtype)
        self.wk = parameter(rngs, inward, (D, M, H), ("embed", "kv_heads", "head_dim"), param_dtype)
        self.wv = parameter(rngs, inward, (D, M, H), ("embed", "kv_heads", "head_dim"), param_dtype)
        self.wo = parameter(rngs, outward, (N, H, D), ("heads", "head_dim", "embed"), param_dtype)
        self.query_norm = RMSNorm(H, rngs=rngs) if qk_norm else None
        self.key_norm = RMSNorm(H, rngs=rngs) if qk_norm else None
        self.rope_theta, self.dtype, self.split_rows = rope_theta, dtype, split_rows

    def __call__(
        self,
        x_BSD: Float[Array, "B S D"],
        position_BS: Int[Array, "B S"],
        segment_BS: Int[Array, "B S"],
        cache: KeyValueCache | None = None,
    ) -> tuple[Float[Array, "B S D"], KeyValueCache | None]:
        def project(weight: nnx.Param) -> Array:
            return jnp.einsum("BSD,DNH->BSNH", x_BSD, weight[...].astype(self.dtype))

        query, key, value = project(self.wq), project(self.wk), project(self.wv)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query = rotate(query, position_BS, self.rope_theta)
        key = rotate(key, position_BS, self.rope_theta)
        S = x_BSD.shape[1]
        if cache is None:
            out = attend_causally(
                _heads_first(query),
                _heads_first(key),
                _heads_first(value),
                segment_BS,
                query_block(S, self.split_rows),
            )
        else:
            key = jax.lax.dynamic_update_slice_in_dim(cache.key_BPMH, key, cache.length, 1)
            value = jax.lax.dynamic_update_slice_in_dim(cache.value_BPMH, value, cache.length, 1)
            cache = KeyValueCache(key_BPMH=key, value_BPMH=value, length=cache.length + S)
            place_S = cache.length - S + jnp.arange(S, dtype=jnp.int32)
            seen_SP = jnp.arange(key.shape[1], dtype=jnp.int32)[None, :] <= place_S[:, None]
            mask_BSP = jnp.broadcast_to(seen_SP, (x_BSD.shape[0], *seen_SP.shape))
            out = attend(_heads_first(query), _heads_first(key), _heads_first(value), mask_BSP)
        return jnp.einsum("BNSH,NHD->BSD", out, self.wo[...].astype(self.dtype)), cache


def _heads_first(x_BSNH: Array) -> Array:
    return x_BSNH.swapaxes(1, 2)
