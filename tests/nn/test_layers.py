"""Norm, dense feed-forward and initialisers, against numpy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from moe_jax.nn.mlp import MLP
from moe_jax.nn.norm import RMSNorm
from moe_jax.nn.param import axes_of, parameter
from moe_jax.ops.initializers import fan_in

B, S, D, F = 2, 3, 8, 12


def rngs():
    return nnx.Rngs(params=jax.random.key(0))


def random(seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=(B, S, D)) * scale).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_rms_norm(scale):
    norm, x_BSD = RMSNorm(D, rngs=rngs()), random(scale=scale)
    weight = np.linspace(0.5, 2, D)
    norm.scale[...] = jnp.asarray(weight, jnp.float32)
    wide = x_BSD.astype(np.float64)
    expected = wide / np.sqrt(np.mean(wide**2, -1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(norm(jnp.asarray(x_BSD)), expected, rtol=1e-5)


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    """Rounded once, at the end."""
    norm = RMSNorm(D, rngs=rngs())
    x_BSD = jnp.asarray(random()).astype(jnp.bfloat16)
    y_BSD = norm(x_BSD)
    assert y_BSD.dtype == jnp.bfloat16
    exact = np.asarray(norm(x_BSD.astype(jnp.float32)))
    np.testing.assert_array_equal(y_BSD, jnp.asarray(exact).astype(jnp.bfloat16))


def silu(x):
    return x * scipy.special.expit(x)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


NUMPY = {
    "swiglu": silu,
    "geglu": gelu_tanh,
    "reglu": lambda x: np.maximum(x, 0),
    "gelu": gelu_tanh,
    "gelu_exact": lambda x: x * scipy.special.ndtr(x),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
}


@pytest.mark.parametrize("activation", NUMPY)
def test_mlp(activation):
    mlp = MLP(
        model_dim=D,
        hidden_dim=F,
        activation=activation,
        init_scale=1.0,
        rngs=rngs(),
    )
    gated = activation.endswith("glu")
    assert ("w_gate" in mlp.names) == gated
    x_BSD = random()
    up, down = (np.asarray(w[...], np.float64) for w in (mlp.w_up, mlp.w_down))
    if gated:
        h = NUMPY[activation](x_BSD @ np.asarray(mlp.w_gate[...], np.float64)) * (x_BSD @ up)
    else:
        h = NUMPY[activation](x_BSD @ up)
    np.testing.assert_allclose(mlp(jnp.asarray(x_BSD)), h @ down, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "options", "fan"),
    [
        ((200, 300), {}, 200),
        ((200, 30, 10), {"in_axis": 0, "out_axis": (1, 2)}, 200),  # queries: D -> N, H
        ((30, 10, 200), {"in_axis": (0, 1)}, 300),  # back: N, H -> D
        ((20, 100, 50), {"batch_axis": 0}, 100),  # experts: E, D, F
    ],
)
def test_variance_of_initialisers(shape, options, fan):
    """Variance scale / fan_in, where experts and heads are no part of the fan."""
    for scale in (1.0, 0.1):
        w = np.asarray(fan_in(scale, **options)(jax.random.key(0), shape, jnp.float32))
        assert np.var(w) * fan == pytest.approx(scale, rel=0.05)
        assert abs(np.mean(w)) < 3 * np.sqrt(scale / fan / w.size)


def test_axes_of_stacked_parameters():
    def make(key):
        return RMSNorm(D, rngs=nnx.Rngs(params=key))

    assert axes_of(nnx.state(make(jax.random.key(0)))) == {"scale": ("norm",)}
    stacked = nnx.vmap(make)(jax.random.split(jax.random.key(0), 3))
    assert axes_of(nnx.state(stacked)) == {"scale": ("layers", "norm")}


def test_a_parameter_needs_a_name_for_every_dimension():
    with pytest.raises(ValueError, match="differ in length"):
        parameter(rngs(), jax.nn.initializers.ones, (2, 3), ("embed",), matrix=None, decays=False)
