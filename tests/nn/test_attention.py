"""Attention against a loop in float64: grouped heads, rotary positions, segments, the cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.nn.attention import Attention, KeyValueCache, rotate, rotations
from moe_jax.nn.mixer import RowSizes
from moe_jax.ops.attention import attend, attend_memory, attend_rows, query_block
from moe_jax.ops.attention_splash import attend_splash
from moe_jax.parallel.mesh import MeshConfig, make_mesh

B, S, D, N, M, H, THETA = 2, 7, 6, 4, 2, 4, 100.0


def make(qk_norm=False, heads=(N, M), mesh=None, **options):
    sizes = RowSizes(
        model_dim=D,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=H,
        rope_theta=THETA,
        qk_norm=qk_norm,
        **options,
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
    layer = Attention(sizes, mesh, nnx.Rngs(params=jax.random.key(0)))
    if qk_norm:
        rng = np.random.default_rng(5)
        for norm in (layer.query_norm, layer.key_norm):
            norm.scale[...] = jnp.asarray(rng.uniform(0.5, 2, H), jnp.float32)
    return layer


def turned(x_H, position):
    """Pair (i, i + H/2) as one complex number, turned by position * theta^(-2 i / H)."""
    half = len(x_H) // 2
    z = x_H[:half] + 1j * x_H[half:]
    z = z * np.exp(1j * position * THETA ** (-2 * np.arange(half) / len(x_H)))
    return np.concatenate([z.real, z.imag])


def normed(x_H, norm):
    return x_H / np.sqrt(np.mean(x_H**2) + norm.epsilon) * np.asarray(norm.scale[...], np.float64)


def reference(layer, x_BSD, position_BS, segment_BS):
    """Token by token, head by head, in float64."""
    wq, wk, wv, wo = (
        np.asarray(w[...], np.float64) for w in (layer.wq, layer.wk, layer.wv, layer.wo)
    )
    heads, shared = wq.shape[1], wq.shape[1] // wk.shape[1]
    y_BSD = np.zeros(x_BSD.shape)

    def vector(weight, norm, b, s, n):
        v = x_BSD[b, s].astype(np.float64) @ weight[:, n]
        return turned(v if norm is None else normed(v, norm), position_BS[b, s])

    for b in range(B):
        for s in range(S):
            seen = [p for p in range(s + 1) if segment_BS[b, p] == segment_BS[b, s]]
            for n in range(heads):
                query = vector(wq, layer.query_norm, b, s, n)
                keys = [vector(wk, layer.key_norm, b, p, n // shared) for p in seen]
                score = np.exp(np.array(keys) @ query / np.sqrt(H))
                values = x_BSD[b, seen].astype(np.float64) @ wv[:, n // shared]
                y_BSD[b, s] += (score / score.sum()) @ values @ wo[n]
    return y_BSD


def inputs():
    x_BSD = np.random.default_rng(0).normal(size=(B, S, D)).astype(np.float32)
    segment_BS = np.array([[1, 1, 1, 2, 2, 2, 0], [1] * S], np.int32)
    position_BS = np.array([[0, 1, 2, 0, 1, 2, 0], np.arange(S)], np.int32)
    return x_BSD, position_BS, segment_BS


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention(heads, qk_norm):
    layer = make(qk_norm, heads)
    x_BSD, position_BS, segment_BS = inputs()
    y_BSD, cache = layer(*map(jnp.asarray, (x_BSD, position_BS, segment_BS)))
    assert cache is None
    expected = reference(layer, x_BSD, position_BS, segment_BS)
    np.testing.assert_allclose(y_BSD, expected, rtol=1e-4, atol=1e-5)


def test_rotation_keeps_lengths_and_sees_only_distances():
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, H)).astype(np.float32)

    def at(x_H, position):
        return np.asarray(
            rotate(
                jnp.asarray(x_H)[None, None, None],
                rotations(jnp.full((1, 1), position), 55, len(x_H), THETA),
            )
        ).reshape(-1)

    np.testing.assert_allclose(at(q, 0), q, rtol=1e-6)
    for position in (3, 11, 50):
        np.testing.assert_allclose(at(q, position), turned(q, position), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            at(q, position + 4) @ at(k, position), at(q, 4) @ at(k, 0), rtol=1e-4, atol=1e-5
        )
    assert abs(at(q, 4) @ at(k, 0) - q @ k) > 1e-2
    assert np.all(np.isnan(at(q, 55)))  # beyond the table


def test_pieces_through_the_cache_equal_the_whole():
    """Prefill of three, then two, then one at a time; the free places of the cache don't count."""
    layer = make(qk_norm=True)
    x_BSD = inputs()[0]
    position_BS = np.broadcast_to(np.arange(S, dtype=np.int32), (B, S))
    ones = jnp.ones((B, S), jnp.int32)
    whole, _ = layer(jnp.asarray(x_BSD), jnp.asarray(position_BS), ones)
    junk = jnp.full((B, S + 3, M, H), 50.0)
    cache = KeyValueCache(key_BPMH=junk, value_BPMH=junk, length=jnp.int32(0))
    parts, start = [], 0
    for size in (3, 2, 1, 1):
        part = slice(start, start + size)
        y_BSD, cache = layer(
            jnp.asarray(x_BSD[:, part]), jnp.asarray(position_BS[:, part]), ones[:, part], cache
        )
        parts.append(y_BSD)
        start += size
        assert int(cache.length) == start
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_blocks_are_the_whole():
    """Values and gradients, also where the last block is shorter; later keys are not read."""
    S, block = 150, 64
    rng = np.random.default_rng(3)
    shapes = ((B, S, N, H), (B, S, M, H), (B, S, M, H), (B, S, N, H))
    query, key, value, slope = (
        jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes
    )
    segment_BS = jnp.asarray(np.repeat([[1, 2], [1, 1]], 75, axis=1), jnp.int32)
    causal_BSS = jnp.tril(segment_BS[:, :, None] == segment_BS[:, None, :])

    def gradients(run):
        out, pull_back = jax.vjp(run, query, key, value)
        return out, *pull_back(slope)

    def at_once(q, k, v):
        return attend(*(x.swapaxes(1, 2) for x in (q, k, v)), causal_BSS).swapaxes(1, 2)

    whole = gradients(at_once)
    blocks = gradients(lambda q, k, v: attend_rows(q, k, v, segment_BS, block))
    for mine, right in zip(blocks, whole, strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-5)
    broken = key.at[:, block:].set(jnp.nan)
    first = attend_rows(query, broken, value, segment_BS, block)[:, :block]
    assert np.array_equal(first, blocks[0][:, :block])


def test_attention_to_a_memory_in_blocks_is_that_at_once():
    """Of another length than the row; values and gradients, and nothing of another segment."""
    rng, B, S, P = np.random.default_rng(0), 2, 150, 40
    shapes = ((B, S, N, H), (B, P, M, H), (B, P, M, H), (B, S, N, H))
    query, key, value, slope = (
        jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes
    )
    segment_BS = jnp.asarray(np.repeat([[1, 2], [1, 1]], 75, axis=1), jnp.int32)
    memory_BP = jnp.asarray(np.repeat([[1, 2], [1, 0]], 20, axis=1), jnp.int32)
    mask_BSP = segment_BS[:, :, None] == memory_BP[:, None, :]

    def gradients(run):
        out, pull_back = jax.vjp(jax.jit(run), query, key, value)
        return out, *pull_back(slope)

    def at_once(q, k, v):
        return attend(*(x.swapaxes(1, 2) for x in (q, k, v)), mask_BSP).swapaxes(1, 2)

    def in_blocks(q, k, v):
        return attend_memory(q, k, v, segment_BS, memory_BP, 64)

    for mine, right in zip(gradients(in_blocks), gradients(at_once), strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-5)
    broken = in_blocks(query, key, value.at[1, 20:].set(jnp.nan))
    assert np.array_equal(broken[0], in_blocks(query, key, value)[0])
    assert np.isnan(np.asarray(value.at[1, 20:].set(jnp.nan))).any()


def test_splash_is_the_blocks():
    """The kernel under the interpreter, values and gradients; heads over tensor, rows over data."""
    rng, S = np.random.default_rng(0), 256
    segment_BS = jnp.asarray(np.sort(rng.integers(1, 4, (2, S))), jnp.int32)
    query, slope = (jnp.asarray(rng.standard_normal((2, S, N, H)), jnp.float32) for _ in range(2))
    key, value = (jnp.asarray(rng.standard_normal((2, S, M, H)), jnp.float32) for _ in range(2))
    mesh = make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])

    def gradients(kernel):
        layer = make(kernel=kernel, mesh=mesh)
        run = jax.jit(lambda q, k, v: layer._over_rows(q, k, v, segment_BS))
        out, pull_back = jax.vjp(run, query, key, value)
        return out, *pull_back(slope)

    for mine, right in zip(gradients("splash"), gradients("blocks"), strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="multiple of 128"):
        attend_splash(query[:, :7], key[:, :7], value[:, :7], segment_BS[:, :7], interpret=True)


def test_sizes_of_blocks():
    assert [query_block(S) for S in (7, 64, 256, 512, 513, 4096)] == [64, 64, 64, 128, 129, 1024]
    assert query_block(4096, split=True) == 4096


def test_no_logits_are_kept_for_the_backward_pass():
    S = 256
    query = jnp.ones((1, S, N, H))
    key = value = jnp.ones((1, S, M, H))
    segment_BS = jnp.ones((1, S), jnp.int32)

    def run(q, k, v):
        return attend_rows(q, k, v, segment_BS, query_block(S))

    _, pull_back = jax.vjp(run, query, key, value)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull_back) if leaf.dtype == jnp.float32)
    # Queries, keys, values, the output, a number for each row, and the scale in each block.
    blocks = S // query_block(S)
    assert kept == 2 * query.size + 2 * key.size + N * S + blocks < N * S * S


def test_large_logits_stay_finite():
    layer = make()
    x_BSD, position_BS, segment_BS = inputs()
    y_BSD, _ = layer(jnp.asarray(1e4 * x_BSD), jnp.asarray(position_BS), jnp.asarray(segment_BS))
    assert np.all(np.isfinite(y_BSD))


def test_initial_variances():
    """1 / D for the projections in, 1 / (N H) for the one out, whatever the number of heads."""
    sizes = RowSizes(
        model_dim=64, num_heads=8, num_kv_heads=4, head_dim=16, rope_theta=THETA, init_scale=0.5
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    layer = Attention(sizes, mesh, nnx.Rngs(params=jax.random.key(0)))
    for weight, fan in ((layer.wq, 64), (layer.wk, 64), (layer.wv, 64), (layer.wo, 8 * 16)):
        assert np.var(np.asarray(weight[...])) * fan == pytest.approx(0.5, rel=0.1)
