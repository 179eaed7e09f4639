"""Grouped-query attention with rotary positions, segments and a key/value cache."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from moe_jax.nn.cost import Cost, Division, Here, Planned
from moe_jax.nn.mixer import BaseMixer, Mixer, NoMixer, RowSizes
from moe_jax.nn.norm import RMSNorm
from moe_jax.nn.param import parameter
from moe_jax.ops.attention import attend, attend_rows, query_block
from moe_jax.ops.attention_splash import attend_splash, splash_fits
from moe_jax.ops.initializers import fan_in
from moe_jax.ops.linear import linear
from moe_jax.ops.precision import accumulator
from moe_jax.parallel.rules import RULES, mesh_size

KERNELS = ("auto", "blocks", "splash")


def attention_kernel(kernel: str, platform: str, S: int, split: bool) -> str:
    """What a name stands for: "auto" is "splash" on TPU for rows of a multiple of 128 positions
    that are not split over devices, else "blocks"."""
    if kernel != "auto":
        return kernel
    return "splash" if platform == "tpu" and not split and splash_fits(S) else "blocks"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class KeyValueCache:
    """Keys and values of the positions so far; `length` of the P places are filled."""

    key_BPMH: Float[Array, "*L B P M H"]
    value_BPMH: Float[Array, "*L B P M H"]
    length: Int[Array, "*L"]


def rotations(
    position_BS: Int[Array, "B S"], span: int, head_dim: int, theta: float
) -> tuple[Float[Array, "B S h"], Float[Array, "B S h"]]:
    """Cosine and sine of position * theta^(-i / h) for the h = head_dim / 2 pairs, float32.

    Positions from `span` on give NaN. Su et al. (2104.09864) eq. 34.
    """
    half = head_dim // 2
    frequency_h = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_Ph = jnp.arange(span, dtype=jnp.float32)[:, None] * frequency_h[None]
    # The rotations are a table: XLA's CPU backend would compute a function of the position anew for
    # every head and use.
    cos_BSh, sin_BSh = (
        table_Ph.at[position_BS].get(mode="fill", fill_value=jnp.nan)
        for table_Ph in (jnp.cos(angle_Ph), jnp.sin(angle_Ph))
    )
    return cos_BSh, sin_BSh


def rotate(
    x_BSNH: Float[Array, "B S N H"],
    rotation: tuple[Float[Array, "B S h"], Float[Array, "B S h"]],
) -> Float[Array, "B S N H"]:
    """Rotary position embedding by `rotations` in float32, halves convention (pair i with i + h),
    as in Llama and Hugging Face."""
    cos, sin = (rotation_BSh[:, :, None, None] for rotation_BSh in rotation)
    # Both halves at once, each beside the other: on CPU a concatenation, and its gradient, are
    # slower than a reversed axis.
    dtype = accumulator(x_BSNH.dtype)
    x_BSN2h = x_BSNH.astype(dtype).reshape(*x_BSNH.shape[:-1], 2, -1)
    sign_21 = jnp.asarray([[-1], [1]], dtype)[None, None, None]
    rotated_BSN2h = x_BSN2h * cos + jnp.flip(x_BSN2h, axis=-2) * (sign_21 * sin)
    return rotated_BSN2h.reshape(x_BSNH.shape).astype(x_BSNH.dtype)


class HeadProjections(nnx.Module):
    """Queries of N heads, keys and values of M, and the way back to the model's width.

    `qk_norm` normalises queries and keys, each head by itself with one scale of head_dim for all,
    as Qwen3 does. (OLMoE's norm spans all heads at once.)
    """

    def __init__(
        self,
        sizes: RowSizes,
        mesh: Mesh,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike = jnp.float32,
    ):
        D, N = sizes.model_dim, sizes.num_heads
        M, H = sizes.num_kv_heads, sizes.head_dim
        inward = fan_in(sizes.init_scale, in_axis=0, out_axis=(1, 2))
        outward = fan_in(sizes.init_scale, in_axis=(0, 1))
        weights = functools.partial(parameter, rngs, dtype=param_dtype, decays=True)
        from_D = functools.partial(weights, inward, matrix=((0,), (1, 2)))
        self.wq = from_D((D, N, H), ("embed", "heads", "head_dim"))
        self.wk = from_D((D, M, H), ("embed", "kv_heads", "head_dim"))
        self.wv = from_D((D, M, H), ("embed", "kv_heads", "head_dim"))
        out_axes = ("heads", "head_dim", "embed")
        self.wo = weights(outward, (N, H, D), out_axes, matrix=((0, 1), (2,)))
        self.query_norm = RMSNorm(H, rngs=rngs) if sizes.qk_norm else None
        self.key_norm = RMSNorm(H, rngs=rngs) if sizes.qk_norm else None
        self.mesh = mesh

    def queries(self, x_BSD: Float[Array, "B S D"]) -> Float[Array, "B S N H"]:
        return self._projected(self.wq, x_BSD, self.query_norm)

    def keys(self, x_BSD: Float[Array, "B S D"]) -> Float[Array, "B S M H"]:
        return self._projected(self.wk, x_BSD, self.key_norm)

    def values(self, x_BSD: Float[Array, "B S D"]) -> Float[Array, "B S M H"]:
        return self._projected(self.wv, x_BSD, None)

    def joined(self, out_BSNH: Float[Array, "B S N H"]) -> Float[Array, "B S D"]:
        """The heads' outputs, brought back."""
        w_NHD = self.wo[...]
        out_BSK = out_BSNH.reshape(*out_BSNH.shape[:2], -1)
        return linear(out_BSK, w_NHD.reshape(-1, w_NHD.shape[-1]), True)

    def _projected(self, weight: nnx.Param[Array], x_BSD: Array, norm: RMSNorm | None) -> Array:
        w_DNH = weight[...]
        y_BSK = linear(x_BSD, w_DNH.reshape(w_DNH.shape[0], -1))
        y_BSNH = y_BSK.reshape(*x_BSD.shape[:2], *w_DNH.shape[1:])
        return y_BSNH if norm is None else norm(y_BSNH)


class Attention(HeadProjections):
    """Self-attention within segments. N query heads share M key/value heads.

    Causal: a token sees itself and the earlier ones, else all of its segment. Without rope_theta
    attention knows no positions.

    The norms of qk_norm come before the rotation.
    kernel: "blocks" (ops/attention.py), "splash" (ops/attention_splash.py; rows of a multiple of
    128 positions), or "auto", see `attention_kernel`.
    """

    def __init__(
        self,
        sizes: RowSizes,
        mesh: Mesh,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike = jnp.float32,
    ):
        super().__init__(sizes, mesh, rngs, param_dtype)
        self.rope_theta, self.causal = sizes.rope_theta, sizes.causal
        self.kernel = sizes.kernel

    def __call__(
        self,
        x_BSD: Float[Array, "B S D"],
        position_BS: Int[Array, "B S"],
        segment_BS: Int[Array, "B S"],
        cache: KeyValueCache | None = None,
        span: int | None = None,
    ) -> tuple[Float[Array, "B S D"], KeyValueCache | None]:
        """span: a bound of the positions; None: the length of the rows or of the cache."""

        query, key, value = self.queries(x_BSD), self.keys(x_BSD), self.values(x_BSD)
        S = x_BSD.shape[1]
        if span is None:
            span = S if cache is None else cache.key_BPMH.shape[1]
        if self.rope_theta is not None:
            rotation = rotations(position_BS, span, query.shape[-1], self.rope_theta)
            query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is None:
            out_BSNH = self._over_rows(query, key, value, jnp.asarray(segment_BS))
        else:
            key = jax.lax.dynamic_update_slice_in_dim(cache.key_BPMH, key, cache.length, 1)
            value = jax.lax.dynamic_update_slice_in_dim(cache.value_BPMH, value, cache.length, 1)
            cache = KeyValueCache(key_BPMH=key, value_BPMH=value, length=cache.length + S)
            place_S = cache.length - S + jnp.arange(S, dtype=jnp.int32)
            seen_SP = jnp.arange(key.shape[1], dtype=jnp.int32)[None, :] <= place_S[:, None]
            mask_BSP = jnp.broadcast_to(seen_SP, (x_BSD.shape[0], *seen_SP.shape))
            out_BNSH = attend(_heads_first(query), _heads_first(key), _heads_first(value), mask_BSP)
            out_BSNH = out_BNSH.swapaxes(1, 2)
        return self.joined(out_BSNH), cache

    def _over_rows(self, query: Array, key: Array, value: Array, segment_BS: Array) -> Array:
        """Every token to those of its segment that it sees, by the kernel that fits."""
        S, split = query.shape[1], mesh_size(self.mesh, RULES["position"]) > 1
        platform = self.mesh.devices.flat[0].platform
        if self.causal and attention_kernel(self.kernel, platform, S, split) == "splash":
            rows, heads = RULES["batch"], RULES["heads"]
            spec = PartitionSpec(rows, None, heads)
            return jax.shard_map(
                functools.partial(attend_splash, interpret=platform != "tpu"),
                mesh=self.mesh,
                in_specs=(spec, spec, spec, PartitionSpec(rows)),
                out_specs=spec,
                check_vma=False,
            )(query, key, value, segment_BS)
        block = query_block(S, split)
        return attend_rows(query, key, value, segment_BS, block, self.causal)


def _heads_first(x_BSNH: Array) -> Array:
    return x_BSNH.swapaxes(1, 2)


@dataclass(frozen=True, kw_only=True)
class GroupedQuery(BaseMixer):
    """`Attention`: num_heads query heads share num_kv_heads of keys and values. GQA, Ainslie et al.
    (2305.13245); equal numbers are multi-head attention, Vaswani et al. (1706.03762)."""

    def make(self, sizes: RowSizes, mesh: Mesh, rngs: nnx.Rngs) -> Attention:
        return Attention(sizes, mesh, rngs)

    def cost(self, sizes: RowSizes, S: int) -> Cost:
        """Scores and their products are 12 * heads * head_dim * S FLOPs, as if not causal."""
        norms = 2 * sizes.head_dim if sizes.qk_norm else 0
        projections = sizes.model_dim * _projected_columns(sizes)
        attended = 12.0 * sizes.num_heads * sizes.head_dim * S
        return Cost.of_matrices(projections) + Cost.of_vectors(norms) + Cost(attended=attended)

    def planned(self, sizes: RowSizes, here: Here) -> Planned:
        split = here.sequence > 1
        kernel = attention_kernel(sizes.kernel, here.platform, here.row, split)
        # One block of queries. Nothing of it is kept: the backward pass computes it again.
        block = 0 if sizes.causal and kernel == "splash" else query_block(here.row, split)
        projected = here.tokens * _projected_columns(sizes) / here.tensor * here.bytes
        logits = here.tokens * block * sizes.num_heads / here.tensor * (4 + here.bytes)
        # Backward, the gradients of the three matrices that take the input are summed one by one.
        summed = (here.forward + 3) * here.tokens * sizes.model_dim * here.bytes
        width = 2 * sizes.num_kv_heads * sizes.head_dim / here.tensor
        return Planned(
            kept=projected + logits,
            products=projected,
            summed=summed,
            exchanged=here.tokens * width * here.bytes,
        )

    def cache(self, sizes: RowSizes, B: int, P: int, dtype: DTypeLike) -> KeyValueCache:
        zeros = jnp.zeros((B, P, sizes.num_kv_heads, sizes.head_dim), dtype)
        return KeyValueCache(key_BPMH=zeros, value_BPMH=zeros, length=jnp.zeros((), jnp.int32))

    def divisions(self, sizes: RowSizes, mesh: Mapping[str, int]) -> Iterator[Division]:
        for name in ("num_heads", "num_kv_heads"):
            yield f"model.{name}", getattr(sizes, name), mesh["tensor"], "mesh.tensor"


def _projected_columns(sizes: RowSizes) -> int:
    """Columns of queries, keys, values and outputs."""
    return (2 * sizes.num_heads + 2 * sizes.num_kv_heads) * sizes.head_dim


# A new one is a new file and one row here.
MIXERS: dict[str, type[Mixer]] = {"grouped_query": GroupedQuery, "none": NoMixer}
