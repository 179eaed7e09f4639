"""-log p(target) of a softmax over a large vocabulary, without the logits of all of it at once."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from moe_jax.ops.linear import linear

# By place: the largest logit, the sum of their exponentials over its, the target's, the best id.
Seen = tuple[Array, Array, Array, Array]


def logits_of(x_BSD: Float[Array, "B S D"], w_DV: Float[Array, "D V"]) -> Float[Array, "B S V"]:
    """x w in float32."""
    return linear(x_BSD, w_DV, dtype=jnp.float32)


def nll_and_best(
    logits_BSV: Float[Array, "B S V"], target_BS: Int[Array, "B S"]
) -> tuple[Float[Array, "B S"], Int[Array, "B S"]]:
    """logsumexp(logits) - logits[target], and the id of the largest logit, the lowest of equals."""
    logits_BSV = logits_BSV.astype(jnp.float32)
    lse_BS = jax.nn.logsumexp(logits_BSV, axis=-1)
    hit_BS = jnp.take_along_axis(logits_BSV, target_BS[..., None], axis=-1)[..., 0]
    return lse_BS - hit_BS, jnp.argmax(logits_BSV, axis=-1).astype(jnp.int32)


@dataclass(frozen=True)
class Cut:
    """The vocabulary as t shards of n chunks of v ids: id = (shard n + chunk) v + place.

    Every device along the mesh axis that the vocabulary is split over has its part of each chunk,
    so that no column of the matrix moves.
    """

    t: int
    n: int
    v: int

    @classmethod
    def of(cls, V: int, chunks: int, shards: int) -> Cut:
        if V % (chunks * shards):
            raise ValueError(f"{V} ids are not divisible into {shards} x {chunks} chunks")
        return cls(shards, chunks, V // (chunks * shards))

    def columns(self, w_Dtnv: Array, i: Array) -> Float[Array, "D tv"]:
        w_Dtv = jax.lax.dynamic_index_in_dim(w_Dtnv, i, axis=2, keepdims=False)
        return w_Dtv.reshape(w_Dtv.shape[0], self.t * self.v)

    def split(self, w_DV: Array) -> Float[Array, "D t n v"]:
        return w_DV.reshape(w_DV.shape[0], self.t, self.n, self.v)

    def place(self, id_BS: Array, i: Array) -> tuple[Array, Array]:
        """Where ids stand in chunk i, and whether they do."""
        shard_BS, rest_BS = jnp.divmod(id_BS, self.n * self.v)
        chunk_BS, place_BS = jnp.divmod(rest_BS, self.v)
        return shard_BS * self.v + place_BS, chunk_BS == i

    def id(self, place_BS: Array, i: Array) -> Array:
        shard_BS, place_BS = jnp.divmod(place_BS, self.v)
        return (shard_BS * self.n + i) * self.v + place_BS


def nll_and_best_by_chunks(
    x_BSD: Float[Array, "B S D"],
    w_DV: Float[Array, "D V"],
    target_BS: Int[Array, "B S"],
    chunks: int,
    shards: int = 1,
) -> tuple[Float[Array, "B S"], Int[Array, "B S"]]:
    """`nll_and_best` of the logits x w, a chunk of the vocabulary at a time.

    At most B x S x V / chunks logits exist at once; the backward pass computes them again: one
    product more than the three of a head. Tokens stay where they are: gradients of w are reduced
    over devices as without chunks, once.

    chunks x shards must divide V; shards: devices that V is split over (ValueError).
    """
    return _by_chunks(Cut.of(w_DV.shape[1], chunks, shards), x_BSD, w_DV, target_BS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_chunks(cut: Cut, x_BSD: Array, w_DV: Array, target_BS: Array) -> tuple[Array, Array]:
    lse_BS, hit_BS, best_BS = _scan_forward(cut, x_BSD, w_DV, target_BS)
    return lse_BS - hit_BS, best_BS


def _scan_forward(
    cut: Cut, x_BSD: Array, w_DV: Array, target_BS: Array
) -> tuple[Array, Array, Array]:
    w_Dtnv = cut.split(w_DV)

    def body(carry: Seen, i: Array) -> tuple[Seen, None]:
        max_BS, sum_BS, hit_BS, best_BS = carry
        logits_BSV = logits_of(x_BSD, cut.columns(w_Dtnv, i))
        new_BS = jnp.max(logits_BSV, axis=-1)
        id_BS = cut.id(jnp.argmax(logits_BSV, axis=-1).astype(jnp.int32), i)
        wins_BS = (new_BS > max_BS) | ((new_BS == max_BS) & (id_BS < best_BS))
        larger_BS = jnp.maximum(max_BS, new_BS)
        terms_BS = jnp.sum(jnp.exp(logits_BSV - larger_BS[..., None]), axis=-1)
        sum_BS = sum_BS * jnp.exp(max_BS - larger_BS) + terms_BS
        place_BS, here_BS = cut.place(target_BS, i)
        value_BS = jnp.take_along_axis(logits_BSV, place_BS[..., None], axis=-1)[..., 0]
        hit_BS = jnp.where(here_BS, value_BS, hit_BS)
        return (larger_BS, sum_BS, hit_BS, jnp.where(wins_BS, id_BS, best_BS)), None

    zeros_BS = jnp.zeros(target_BS.shape, jnp.float32)
    least = float(np.finfo(np.float32).min)
    first = (zeros_BS + least, zeros_BS, zeros_BS, jnp.zeros(target_BS.shape, jnp.int32))
    carry, _ = jax.lax.scan(body, first, jnp.arange(cut.n, dtype=jnp.int32))
    max_BS, sum_BS, hit_BS, best_BS = carry
    return max_BS + jnp.log(sum_BS), hit_BS, best_BS


def _forward(
    cut: Cut, x_BSD: Array, w_DV: Array, target_BS: Array
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    lse_BS, hit_BS, best_BS = _scan_forward(cut, x_BSD, w_DV, target_BS)
    return (lse_BS - hit_BS, best_BS), (x_BSD, w_DV, target_BS, lse_BS)


def _backward(
    cut: Cut, residuals: tuple[Array, ...], cotangents: tuple[Array, object]
) -> tuple[Array, Array, np.ndarray]:
    x_BSD, w_DV, target_BS, lse_BS = residuals
    slope_BS = cotangents[0]
    w_Dtnv = cut.split(w_DV)

    def body(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        dx_BSD, dw_Dtnv = carry
        w_Dv = cut.columns(w_Dtnv, i)
        share_BSv = jnp.exp(logits_of(x_BSD, w_Dv) - lse_BS[..., None])
        place_BS, here_BS = cut.place(target_BS, i)
        column_11v = jnp.arange(w_Dv.shape[1], dtype=place_BS.dtype)[None, None, :]
        hit_BSv = (place_BS[..., None] == column_11v) & here_BS[..., None]
        d_BSv = ((share_BSv - hit_BSv.astype(jnp.float32)) * slope_BS[..., None]).astype(
            x_BSD.dtype
        )
        dx_BSD += jnp.einsum("BSv,Dv->BSD", d_BSv, w_Dv, preferred_element_type=jnp.float32)
        dw_Dv = jnp.einsum("BSD,BSv->Dv", x_BSD, d_BSv, preferred_element_type=jnp.float32)
        dw_Dtv = dw_Dv.astype(w_DV.dtype).reshape(-1, cut.t, cut.v)
        return (dx_BSD, jax.lax.dynamic_update_index_in_dim(dw_Dtnv, dw_Dtv, i, axis=2)), None

    first = (jnp.zeros(x_BSD.shape, jnp.float32), jnp.zeros(w_Dtnv.shape, w_DV.dtype))
    (dx_BSD, dw_Dtnv), _ = jax.lax.scan(body, first, jnp.arange(cut.n, dtype=jnp.int32))
    no_gradient = np.zeros(target_BS.shape, jax.dtypes.float0)
    return dx_BSD.astype(x_BSD.dtype), dw_Dtnv.reshape(w_DV.shape), no_gradient


_by_chunks.defvjp(_forward, _backward)
