"""The cosine router against float64 numpy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from moe_jax.routing import ROUTERS
from tests.routing.given import inputs

T, D, P, E, K = 13, 7, 4, 5, 2


@pytest.mark.parametrize(
    ("score", "temperature"), [("softmax", 0.3), ("softmax", 0.001), ("sigmoid", 0.3)]
)
def test_cosine_router_against_float64(score, temperature):
    """score(cos(W x, v_e) / max(tau, 0.01)): 2204.09179 section 3.2."""
    rng = np.random.default_rng(0)
    x, kernel, directions = (rng.normal(size=s) for s in ((T, D), (D, P), (E, P)))
    params = {"kernel": kernel, "directions": directions, "temperature": [temperature]}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    router = ROUTERS["cosine"](k=K, dim=P, score=score)
    a, sums = router.route(params, {}, inputs(x))
    projected = x @ kernel
    norms = np.outer(np.linalg.norm(projected, axis=1), np.linalg.norm(directions, axis=1))
    logits = projected @ directions.T / norms / max(temperature, 0.01)
    sigmoid = score == "sigmoid"
    scores = scipy.special.expit(logits) if sigmoid else scipy.special.softmax(logits, axis=1)
    best_TK = np.argsort(-logits, axis=1)[:, :K]
    np.testing.assert_array_equal(np.asarray(a.expert_R).reshape(T, K), best_TK)
    expected = np.take_along_axis(scores, best_TK, axis=1)
    found = np.asarray(a.weight_R).reshape(T, K)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    z = np.sum(scipy.special.logsumexp(logits, axis=1) ** 2)
    np.testing.assert_allclose(sums.z, z, rtol=1e-5)
