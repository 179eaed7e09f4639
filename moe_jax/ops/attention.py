"""Attention within segments, causal or not, a block of positions at a time.

No logits are kept for the backward pass, which computes them again from the logarithm of each
query's sum (Dao et al., 2205.14135): reading them would take as long on CPU, and more memory.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from moe_jax.ops.precision import accumulator, upcast

# Blocks of positions: more of them skip more, and take longer to compile.
MIN_BLOCK, MAX_BLOCKS = 64, 4
# The logit of a masked position. It is finite, so that a row that sees nothing has no NaN.
UNSEEN = -1e30


def query_block(S: int, split: bool = False) -> int:
    """Positions of a block: a quarter of the row, at least 64; all where the row is split over
    devices, each of which has its part of the queries."""
    return S if split else max(MIN_BLOCK, -(-S // MAX_BLOCKS))


def attend(
    query_BNSH: Float[Array, "B N S H"],
    key_BMPH: Float[Array, "B M P H"],
    value_BMPH: Float[Array, "B M P H"],
    mask_BSP: Bool[Array, "B S P"],
) -> Float[Array, "B N S H"]:
    """softmax(q k / sqrt(H)) v with N / M queries per key head; logits and softmax in float32 or
    better."""
    M = key_BMPH.shape[1]
    rows = _to_rows(query_BNSH, M)
    mask_B1RP = _of_rows(mask_BSP, query_BNSH.shape[1] // M)
    return _from_rows(
        _softmax_times(rows, [key_BMPH], [value_BMPH], [mask_B1RP])[0], query_BNSH.shape[1]
    )


def attend_rows(
    query_BSNH: Float[Array, "B S N H"],
    key_BSMH: Float[Array, "B S M H"],
    value_BSMH: Float[Array, "B S M H"],
    segment_BS: Int[Array, "B S"],
    block: int,
    causal: bool = True,
) -> Float[Array, "B S N H"]:
    """`attend` of every token to all of its segment, or to itself and the earlier ones of it;
    positions first.

    causal: a block of queries meets only the blocks of keys up to its own: with n blocks
    (n + 1) / 2n of the logits are computed.
    """
    (_, S, N, _), M = query_BSNH.shape, key_BSMH.shape[2]
    sizes = [min(block, S - start) for start in range(0, S, block)]

    def blocks(x: Array) -> list[Array]:
        return [part.swapaxes(1, 2) for part in jax.lax.split(x, sizes, axis=1)]

    queries = [_to_rows(query_BNSH, M) for query_BNSH in blocks(query_BSNH)]
    segments = jax.lax.split(segment_BS, sizes, axis=1)
    keys, values = blocks(key_BSMH), blocks(value_BSMH)
    return _joined(_by_blocks(N // M, causal, queries, keys, values, (segments, segments)), N)


def attend_memory(
    query_BSNH: Float[Array, "B S N H"],
    key_BPMH: Float[Array, "B P M H"],
    value_BPMH: Float[Array, "B P M H"],
    segment_BS: Int[Array, "B S"],
    memory_BP: Int[Array, "B P"],
    block: int,
) -> Float[Array, "B S N H"]:
    """`attend` of every token to the places of a memory whose segment (memory_BP) is its own, a
    block of queries at a time; positions first."""
    (_, S, N, _), M = query_BSNH.shape, key_BPMH.shape[2]
    sizes = [min(block, S - start) for start in range(0, S, block)]
    parts = jax.lax.split(query_BSNH, sizes, axis=1)
    queries = [_to_rows(part.swapaxes(1, 2), M) for part in parts]
    segments = (jax.lax.split(segment_BS, sizes, axis=1), [memory_BP])
    keys, values = [key_BPMH.swapaxes(1, 2)], [value_BPMH.swapaxes(1, 2)]
    return _joined(_by_blocks(N // M, False, queries, keys, values, segments), N)


def _joined(outs: list[Array], N: int) -> Array:
    """Blocks of positions (B, M, R, H) as (B, S, N, H)."""
    outs = [_from_rows(out_BMRH, N).swapaxes(1, 2) for out_BMRH in outs]
    return outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)


# The Q = N / M queries per key head are one dimension R = S Q of rows: on CPU a product with two
# of them is transposed first. Positions come before heads, so that a split of positions stays one.


def _to_rows(query_BNSH: Array, M: int) -> Array:
    """(B, M, R, H), divided by sqrt(H)."""
    B, N, S, H = query_BNSH.shape
    query_BNSH = query_BNSH * jnp.asarray(H**-0.5, query_BNSH.dtype)
    return query_BNSH.reshape(B, M, N // M, S, H).swapaxes(2, 3).reshape(B, M, -1, H)


def _from_rows(out_BMRH: Array, N: int) -> Array:
    B, M, R, H = out_BMRH.shape
    out_BMSQH = out_BMRH.reshape(B, M, R * M // N, N // M, H)
    return out_BMSQH.swapaxes(2, 3).reshape(B, N, -1, H)


def _of_rows(mask_BSP: Array, Q: int) -> Array:
    """(B, 1, R, P)"""
    return (jnp.repeat(mask_BSP, Q, axis=1) if Q > 1 else mask_BSP)[:, None]


def _product(subscripts: str, a: Array, b: Array) -> Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=accumulator(a.dtype))


def _sum(terms: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, terms)


def _softmax_times(
    query_BMRH: Array, keys: list[Array], values: list[Array], masks: list[Array]
) -> tuple[Array, Array]:
    """The output of a block of queries over blocks of keys (B, M, P, H), and the logarithm of each
    row's sum of exponentials (B, M, R)."""
    dtype = values[0].dtype
    logits = [
        jnp.where(mask_B1RP, _product("BMRH,BMPH->BMRP", query_BMRH, key), UNSEEN)
        for key, mask_B1RP in zip(keys, masks, strict=True)
    ]
    maxima = [jnp.max(logits_BMRP, axis=-1, keepdims=True) for logits_BMRP in logits]
    max_BMR1 = functools.reduce(jnp.maximum, maxima)
    powers = [jnp.exp(logits_BMRP - max_BMR1) for logits_BMRP in logits]
    total_BMR1 = _sum(jnp.sum(power, axis=-1, keepdims=True) for power in powers)
    # Dividing after the product touches fewer numbers.
    out_BMRH = _sum(
        _product("BMRP,BMPH->BMRH", power.astype(dtype), value)
        for power, value in zip(powers, values, strict=True)
    )
    log_BMR = (max_BMR1 + jnp.log(total_BMR1))[..., 0]
    return (out_BMRH / total_BMR1).astype(dtype), log_BMR


Blocks = list[Array]
Segments = tuple[Blocks, Blocks]  # of the blocks of queries, and of keys


def _seen(segments: Segments, i: int, j: int, Q: int, causal: bool) -> Array:
    """(B, 1, R, P): which keys of block j the rows of block i see."""
    of_queries, of_keys = segments
    mask_BSP = of_queries[i][:, :, None] == of_keys[j][:, None, :]
    if causal and i == j:
        mask_BSP = jnp.tril(mask_BSP)
    return _of_rows(mask_BSP, Q)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_blocks(
    Q: int, causal: bool, queries: Blocks, keys: Blocks, values: Blocks, segments: Segments
) -> Blocks:
    return _forward(Q, causal, queries, keys, values, segments)[0]


def _forward(
    Q: int, causal: bool, queries: Blocks, keys: Blocks, values: Blocks, segments: Segments
) -> tuple[Blocks, tuple[PyTree, ...]]:
    outs, logs = [], []
    for i, query_BMRH in enumerate(queries):
        n = i + 1 if causal else len(keys)
        masks = [_seen(segments, i, j, Q, causal) for j in range(n)]
        out, log = _softmax_times(query_BMRH, keys[:n], values[:n], masks)
        outs.append(out)
        logs.append(log)
    return outs, (queries, keys, values, segments, outs, logs)


def _backward(
    Q: int, causal: bool, residuals: tuple[PyTree, ...], douts: Blocks
) -> tuple[PyTree, ...]:
    """With p = exp(l - log), d = p * (<dout, v> - <dout, out>): dq = d k, dk = d q, dv = p dout.

    Here the keys are the rows of l, p and d, the queries their columns: so no large matrix has to
    be transposed for a product.
    """
    queries, keys, values, segments, outs, logs = residuals
    n, dtype = len(keys), queries[0].dtype
    dots = [jnp.sum(upcast(dout) * out, axis=-1) for dout, out in zip(douts, outs, strict=True)]
    transposed = [key_BMPH.swapaxes(2, 3) for key_BMPH in keys]
    dqueries: list[list[Array]] = [[] for _ in queries]
    dkeys: list[list[Array]] = [[] for _ in range(n)]
    dvalues: list[list[Array]] = [[] for _ in range(n)]
    for i in range(len(queries)):
        for j in range(i + 1 if causal else n):
            mask_B1PR = _seen(segments, i, j, Q, causal).swapaxes(2, 3)
            logits_BMPR = _product("BMPH,BMRH->BMPR", keys[j], queries[i])
            power_BMPR = jnp.exp(logits_BMPR - logs[i][:, :, None])
            power_BMPR = jnp.where(mask_B1PR, power_BMPR, 0)
            dvalues[j].append(_product("BMPR,BMRH->BMPH", power_BMPR.astype(dtype), douts[i]))
            dpower_BMPR = _product("BMPH,BMRH->BMPR", values[j], douts[i])
            d_BMPR = (power_BMPR * (dpower_BMPR - dots[i][:, :, None])).astype(dtype)
            dkeys[j].append(_product("BMPR,BMRH->BMPH", d_BMPR, queries[i]))
            dqueries[i].append(_product("BMHP,BMPR->BMHR", transposed[j], d_BMPR))
    return (
        [_sum(terms).swapaxes(2, 3).astype(dtype) for terms in dqueries],
        [_sum(terms).astype(dtype) for terms in dkeys],
        [_sum(terms).astype(dtype) for terms in dvalues],
        jax.tree.map(lambda segment: np.zeros(segment.shape, jax.dtypes.float0), segments),
    )


_by_blocks.defvjp(_forward, _backward)
