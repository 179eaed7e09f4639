"""The loss by chunks of the vocabulary against float64 numpy, against all logits at once, on a
mesh, and its memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moe_jax.nn.predictions import MAX_LOGITS, Predictions, chunks_of
from moe_jax.ops.cross_entropy import nll_and_best_by_chunks
from moe_jax.parallel.mesh import MeshConfig, make_mesh

B, S, D, V = 4, 6, 8, 24


def arrays(scale=1.0):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, S, D)).astype(np.float32)
    w = (scale * rng.standard_normal((D, V))).astype(np.float32)
    target = rng.integers(0, V, (B, S)).astype(np.int32)
    slope = rng.standard_normal((B, S)).astype(np.float32)
    return tuple(map(jnp.asarray, (x, w, target, slope)))


def oracle(x, w, target, slope):
    """nats, best, dx, dw in float64."""
    x, w, slope = (np.asarray(a, np.float64) for a in (x, w, slope))
    target = np.asarray(target)
    logits = x @ w
    top = logits.max(-1, keepdims=True)
    lse = np.log(np.exp(logits - top).sum(-1, keepdims=True)) + top
    hit = np.eye(V)[target]
    d = (np.exp(logits - lse) - hit) * slope[..., None]
    nats = lse[..., 0] - (logits * hit).sum(-1)
    return nats, logits.argmax(-1), d @ w.T, np.einsum("bsd,bsv->dv", x, d)


def run(x, w, target, slope, chunks, shards=1):
    def value(x, w):
        return nll_and_best_by_chunks(x, w, target, chunks, shards)

    nats, pull_back, best = jax.vjp(value, x, w, has_aux=True)
    return nats, best, *pull_back(slope)


@pytest.mark.parametrize(("chunks", "shards"), [(1, 1), (3, 1), (24, 1), (3, 4), (2, 2)])
@pytest.mark.parametrize("scale", [1.0, 100.0])  # logits of hundreds: exp would overflow
def test_against_float64(chunks, shards, scale):
    x, w, target, slope = arrays(scale)
    found = run(x, w, target, slope, chunks, shards)
    for mine, right in zip(found, oracle(x, w, target, slope), strict=True):
        np.testing.assert_allclose(mine, right, rtol=2e-5, atol=2e-5 * scale)


def test_best_is_the_lowest_of_equals_wherever_they_stand():
    x, target = jnp.ones((1, 1, 1)), jnp.zeros((1, 1), jnp.int32)
    for at in ([3, 20], [9, 10], [23], [0, 23]):
        w = np.zeros((1, V), np.float32)
        w[0, at] = 2.0
        for chunks, shards in ((1, 1), (4, 1), (6, 2), (2, 3)):
            best = nll_and_best_by_chunks(x, jnp.asarray(w), target, chunks, shards)[1]
            assert int(best[0, 0]) == at[0]


def test_the_same_on_a_mesh_that_splits_tokens_and_vocabulary():
    x, w, target, slope = arrays()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])

    def put(a, *axes):
        return jax.device_put(a, NamedSharding(mesh, PartitionSpec(*axes)))

    rows = ("data", "fsdp")
    placed = (put(x, rows), put(w, "fsdp", "tensor"), put(target, rows), put(slope, rows))
    found = jax.jit(lambda *a: run(*a, chunks=3, shards=2))(*placed)
    for mine, right in zip(found, oracle(x, w, target, slope), strict=True):
        np.testing.assert_allclose(mine, right, rtol=2e-5, atol=2e-5)


def test_logits_are_never_whole():
    """Temporary memory of loss and gradient falls with the number of chunks."""
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((8, 64, 16), jnp.float32), ((16, 4096), jnp.float32))
    ]
    target = jax.ShapeDtypeStruct((8, 64), jnp.int32)
    all_logits = 4 * 8 * 64 * 4096

    def temporary(chunks):
        def loss(x, w, target):
            predictions = Predictions(hidden_BSD=x, head_DV=w, chunks=chunks)
            return jnp.sum(predictions.of_targets(target)[0])

        program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes, target).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(1) > all_logits
    assert temporary(16) < all_logits / 4


def test_number_of_chunks():
    assert chunks_of(264, 4096, 1, None) == 1
    tokens = 8192
    n = chunks_of(32000, tokens, 1, None)
    assert 32000 % n == 0 and 4 * tokens * 32000 / n <= MAX_LOGITS
    assert chunks_of(32000, tokens, 4, None) <= n
    assert chunks_of(32000, tokens, 1, 10) == 10
    with pytest.raises(ValueError, match="24 ids are not divisible"):
        x, w, target, slope = arrays()
        run(x, w, target, slope, 5)
