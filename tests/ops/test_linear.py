"""A product with parameters is the product, whichever factor its gradient transposes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.ops.linear import linear


@pytest.mark.parametrize("turn_output", [False, True])
@pytest.mark.parametrize("rows", [(5,), (2, 3)])
def test_values_and_gradients(rows, turn_output):
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(shape) for shape in ((*rows, 4), (4, 7), (*rows, 7)))
    y, pull_back = jax.vjp(lambda x, w: linear(x, w, turn_output), *map(jnp.float32, (x, w)))
    dx, dw = pull_back(jnp.float32(dy))
    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, dy @ w.T, rtol=1e-5, atol=1e-6)
    right = np.tensordot(x, dy, (range(len(rows)), range(len(rows))))
    np.testing.assert_allclose(dw, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("turn_output", [False, True])
def test_types(turn_output):
    x, w = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 2), jnp.bfloat16)
    assert linear(x, w).dtype == jnp.bfloat16
    y, pull_back = jax.vjp(lambda x, w: linear(x, w, turn_output, jnp.float32), x, w)
    assert y.dtype == jnp.float32
    assert {gradient.dtype for gradient in pull_back(y)} == {jnp.dtype(jnp.bfloat16)}


def test_the_factor_that_is_transposed():
    """The transposed factor is the left one of the product; the right one is read as it is."""

    def left(turn_output):
        x, w = jnp.ones((3, 4)), jnp.ones((4, 2))
        jaxpr = jax.make_jaxpr(jax.grad(lambda w: jnp.sum(linear(x, w, turn_output))))(w)
        last = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"][-1]
        return last.invars[0].aval.shape

    assert left(False) == (3, 4)
    assert left(True) == (3, 2)
