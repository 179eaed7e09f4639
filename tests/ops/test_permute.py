"""Gathers whose gradients are gathers, against JAX's own gradients of plain indexing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.ops.permute import combine_rows, gather_rows, invert_index

T, K, D, M = 7, 3, 4, 15


def places():
    """Distinct places of T * K rows among M, M for the rows that have none."""
    rng = np.random.default_rng(0)
    place = np.full(T * K, M)
    chosen = rng.permutation(T * K)[: M - 2]
    place[chosen] = rng.permutation(M)[: M - 2]
    return jnp.asarray(place.reshape(T, K), jnp.int32)


def test_invert_index():
    place_TK = places()
    row_M = invert_index(place_TK.reshape(-1), M)
    for m, row in enumerate(np.asarray(row_M)):
        found = np.flatnonzero(np.asarray(place_TK).reshape(-1) == m)
        assert list(found) == ([row] if row < T * K else [])


def test_gather_rows_and_its_gradient():
    place_TK = places()
    token_M = invert_index(place_TK.reshape(-1), M) // K
    x_TD = jax.random.normal(jax.random.key(0), (T, D))
    slope_MD = jax.random.normal(jax.random.key(1), (M, D))

    def plain(x_TD):
        padded = jnp.concatenate([x_TD, jnp.zeros((1, D))])
        return jnp.sum(padded[token_M] * slope_MD)

    def ours(x_TD):
        return jnp.sum(gather_rows(x_TD, token_M, place_TK) * slope_MD)

    for found, expected in zip(
        jax.value_and_grad(ours)(x_TD), jax.value_and_grad(plain)(x_TD), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_combine_rows_and_its_gradients():
    place_TK = places()
    row_M = invert_index(place_TK.reshape(-1), M)
    y_MD = jax.random.normal(jax.random.key(0), (M, D))
    weight_TK = jax.random.normal(jax.random.key(1), (T, K))
    slope_TD = jax.random.normal(jax.random.key(2), (T, D))

    def plain(y_MD, weight_TK):
        padded = jnp.concatenate([y_MD, jnp.zeros((1, D))])
        return jnp.sum(jnp.einsum("tkd,tk->td", padded[place_TK], weight_TK) * slope_TD)

    def ours(y_MD, weight_TK):
        return jnp.sum(combine_rows(y_MD, weight_TK, place_TK, row_M) * slope_TD)

    found = jax.value_and_grad(ours, (0, 1))(y_MD, weight_TK)
    expected = jax.value_and_grad(plain, (0, 1))(y_MD, weight_TK)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
