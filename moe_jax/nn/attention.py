"""Grouped-query attention with rotary positions, segments and a key/value cache."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from moe_jax.nn.norm import RMSNorm
from moe_jax.nn.param import fan_in, parameter


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
    query_BSNH: Float[Array, "B S N H"],
    key_BPMH: Float[Array, "B P M H"],
    value_BPMH: Float[Array, "B P M H"],
    mask_BSP: Array,
) -> Float[Array, "B S N H"]:
    """softmax(q k / sqrt(H)) v with N / M queries per key head; logits and softmax in float32."""
    B, S, N, H = query_BSNH.shape
    M = key_BPMH.shape[2]
    query_BSMQH = query_BSNH.reshape(B, S, M, N // M, H)
    logits_BMQSP = jnp.einsum(
        "BSMQH,BPMH->BMQSP", query_BSMQH, key_BPMH, preferred_element_type=jnp.float32
    ) * (H**-0.5)
    logits_BMQSP = jnp.where(mask_BSP[:, None, None], logits_BMQSP, -1e30)
    share_BMQSP = jax.nn.softmax(logits_BMQSP, axis=-1).astype(value_BPMH.dtype)
    out_BSMQH = jnp.einsum("BMQSP,BPMH->BSMQH", share_BMQSP, value_BPMH)
    return out_BSMQH.reshape(B, S, N, H)


class Attention(nnx.Module):
    """Causal self-attention within segments. N query heads share M key/value heads.

    `qk_norm` normalises queries and keys per head before the rotation (OLMoE, Qwen3).
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
        self.rope_theta, self.dtype = rope_theta, dtype

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
            causal_SP = jnp.tril(jnp.ones((S, S), bool))
            same_BSP = segment_BS[:, :, None] == segment_BS[:, None, :]
            out = attend(query, key, value, same_BSP & causal_SP[None])
        else:
            key = jax.lax.dynamic_update_slice_in_dim(cache.key_BPMH, key, cache.length, 1)
            value = jax.lax.dynamic_update_slice_in_dim(cache.value_BPMH, value, cache.length, 1)
            cache = KeyValueCache(key_BPMH=key, value_BPMH=value, length=cache.length + S)
            place_S = cache.length - S + jnp.arange(S, dtype=jnp.int32)
            seen_SP = jnp.arange(key.shape[1], dtype=jnp.int32)[None, :] <= place_S[:, None]
            out = attend(
                query, key, value, jnp.broadcast_to(seen_SP, (x_BSD.shape[0], *seen_SP.shape))
            )
        return jnp.einsum("BSNH,NHD->BSD", out, self.wo[...].astype(self.dtype)), cache
