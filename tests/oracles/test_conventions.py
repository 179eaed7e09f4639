"""A coefficient converted to Hugging Face's convention weighs their loss as ours weighs ours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from moe_jax.routing import Mixtral
from moe_jax.routing.balance import load_balance_loss
from moe_jax.routing.conventions import CODEBASES, convert_coefficient
from moe_jax.routing.plan import reduce_sums
from moe_jax.routing.types import RouterInputs
from tests.oracles.hugging_face import assert_close

T, E, LAYERS = 48, 8, 3
OURS = [name for name, row in CODEBASES.items() if row.normalization and row.count == "all"]


def sums_of(logits_LTE, k):
    """Leaves (L, ...): the sums of each layer, with the logits as the inputs of an identity."""
    place_T = jnp.arange(T, dtype=jnp.int32)

    def route(logits_TE):
        inputs = RouterInputs(
            x_TD=logits_TE,
            valid_T=jnp.ones(T, bool),
            id_T=place_T,
            position_T=place_T,
            segment_T=jnp.ones(T, jnp.int32),
            E=E,
        )
        return Mixtral(k=k).route({"kernel": jnp.eye(E)}, {}, inputs)[1]

    return jax.vmap(route)(logits_LTE)


def draw(seed, layers):
    skew_E = np.linspace(0, 2, E)
    logits = np.random.default_rng(seed).normal(size=(layers, T, E)) + skew_E
    return logits.astype(np.float32)


def theirs(logits_LTE, k, coefficient):
    """coefficient * their loss, and its gradient."""
    logits = torch.tensor(logits_LTE, requires_grad=True)
    loss = coefficient * load_balancing_loss_func(tuple(logits), E, k)
    loss.backward()
    return loss.item(), logits.grad.numpy()


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("name", OURS)
def test_one_layer(name, k):
    """Ours by each codebase's normalization with 0.7; theirs with the converted coefficient."""
    converted = convert_coefficient(0.7, name, "hugging_face", E=E, k=k, layers=1)

    @jax.jit
    @jax.value_and_grad
    def ours(logits_LTE):
        sums = reduce_sums(sums_of(logits_LTE, k), 0)
        return 0.7 * load_balance_loss(sums, normalization=CODEBASES[name].normalization)

    for seed in range(5):
        logits_LTE = draw(seed, 1)
        value, gradient = ours(logits_LTE)
        expected, expected_gradient = theirs(logits_LTE, k, converted)
        np.testing.assert_allclose(value, expected, rtol=2e-6)
        assert_close(gradient, expected_gradient, 1e-5, f"seed {seed}")


@pytest.mark.parametrize("k", [1, 2])
def test_several_layers_are_pooled_there(k):
    """Their loss of several layers is the pooled convention, and no number of times a sum or mean
    of the layers' losses: the ratio depends on the routing, and the conversion refuses."""
    ratios = []
    for seed in range(5):
        logits_LTE = draw(seed, LAYERS)
        logits_LTE[0, :, 0] += seed  # layers that differ, more or less
        sums_L = sums_of(logits_LTE, k)
        pooled = load_balance_loss(reduce_sums(sums_L, 0), normalization="hugging_face")
        np.testing.assert_allclose(pooled, theirs(logits_LTE, k, 1.0)[0], rtol=2e-6)
        each_L = jax.vmap(lambda s: load_balance_loss(s, normalization="hugging_face"))(sums_L)
        ratios.append(float(pooled / jnp.mean(each_L)))
    assert max(ratios) - min(ratios) > 0.01
    for name in OURS:
        if name != "hugging_face":
            with pytest.raises(ValueError, match="neither the sum nor the mean"):
                convert_coefficient(0.7, name, "hugging_face", E=E, k=k, layers=LAYERS)
