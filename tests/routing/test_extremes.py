"""Routers at extreme inputs: every value and every gradient is a number."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.routing import ROUTERS
from moe_jax.routing.choice import renormalize
from moe_jax.routing.scores import SCORES, sqrt_softplus
from moe_jax.routing.types import Assignments, RouterInputs

T, D, E = 12, 6, 6
random = np.random.default_rng(0)
DRAWN = random.standard_normal((T, D))
ONE_HOT = np.eye(D)[np.arange(T) % D]
INPUTS = {
    "drawn": DRAWN,
    "zeros": np.zeros((T, D)),
    "tiny": 1e-30 * DRAWN,
    "small": 1e-6 * DRAWN,
    "large": 100 * DRAWN,
    "huge": 1e4 * DRAWN,
    "all equal": np.tile(DRAWN[:1], (T, 1)),
    "one far below": DRAWN - 100 * ONE_HOT,
    "one very far below": DRAWN - 1000 * ONE_HOT,
    "one far above": DRAWN + 100 * ONE_HOT,
    "one very far above": DRAWN + 1000 * ONE_HOT,
    "all below": np.abs(DRAWN) * -200,
    "all above": np.abs(DRAWN) * 200,
    "one token of zeros": DRAWN * (np.arange(T) > 0)[:, None],
    "one huge token": DRAWN * np.where(np.arange(T) == 3, 1e4, 1)[:, None],
    "by columns": DRAWN * 10.0 ** np.arange(-3, 3)[None],
    "pairs of opposites": np.concatenate([DRAWN[:6], -DRAWN[:6]]),
    "ones": np.ones((T, D)),
}


def options(kind: str):
    """The kind as it is, and with each of its scores."""
    fields = {field.name for field in dataclasses.fields(ROUTERS[kind])}
    return [{}, *({"score": score} for score in SCORES if "score" in fields)]


@pytest.mark.parametrize("kind", ROUTERS)
def test_values_and_gradients_are_finite(kind: str):
    """With the identity as the router's matrix, so that the inputs are the logits."""
    for settings in options(kind):
        router = ROUTERS[kind](**settings)
        specs = router.params(D, E)
        params = {
            name: jnp.eye(*spec.shape, dtype=jnp.float32)
            if name == "kernel" and len(spec.shape) == 2
            else spec.init(jax.random.key(1), spec.shape, jnp.float32)
            for name, spec in specs.items()
        }
        state = router.state(E)

        def total(params, x_TD, router=router, state=state):
            place_T = jnp.arange(T, dtype=jnp.int32)
            inputs = RouterInputs(
                x_TD=x_TD,
                valid_T=place_T < T - 1,
                id_T=place_T,
                position_T=place_T,
                segment_T=jnp.ones((T,), jnp.int32),
                key=jax.random.key(2),
                E=E,
                train=True,
            )
            decision, sums = router.route(params, state, inputs)
            weights = (
                jnp.sum(decision.weight_R * jnp.cos(decision.token_R.astype(jnp.float32)))
                if isinstance(decision, Assignments)
                else jnp.sum(jnp.square(decision.combine_TEC))
                + jnp.sum(jnp.square(decision.dispatch_TEC))
            )
            floats = [leaf for leaf in jax.tree.leaves(sums) if leaf.dtype == jnp.float32]
            losses = sum(router.losses(sums).values(), jnp.zeros(()))
            return weights + losses + sum(jnp.sum(leaf) for leaf in floats), sums

        run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        for name, x_TD in INPUTS.items():
            found = run(params, jnp.asarray(x_TD, jnp.float32))
            for path, leaf in jax.tree_util.tree_leaves_with_path(found):
                where = f"{kind} {settings}, {name}: {jax.tree_util.keystr(path)}"
                assert np.all(np.isfinite(leaf)), where


def test_sqrt_softplus_and_its_slope_against_float64():
    """Its slope was NaN below a logit of about -87."""
    logits = np.concatenate([np.linspace(-300, 300, 601), [-20.5, -19.5, -87.5, 1e4]])
    softplus = np.logaddexp(0, logits)
    x = jnp.asarray(logits, jnp.float32)[None]
    # Below about -174 the root is no float32 any more.
    np.testing.assert_allclose(sqrt_softplus(x)[0], np.sqrt(softplus), rtol=2e-6, atol=1e-37)
    slope = jax.grad(lambda x: jnp.sum(sqrt_softplus(x)))(x)[0]
    right = np.exp(-np.logaddexp(0, -logits)) / (2 * np.sqrt(softplus))
    np.testing.assert_allclose(slope, right, rtol=2e-5, atol=1e-37)
    assert float(sqrt_softplus(jnp.array([[-jnp.inf]]))[0, 0]) == 0


def test_weights_of_tiny_scores_sum_to_one():
    tiny = jnp.array([[1e-25, 3e-25], [0, 0], [1e-38, 0]])
    weight = np.asarray(renormalize(tiny))
    np.testing.assert_allclose(weight[0], [0.25, 0.75], rtol=1e-6)
    assert np.all(weight[1:] < 1e-7)
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(renormalize(x)[:, 0]))(tiny)))
