"""Sums, losses over scopes, and metrics against float64 numpy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from moe_jax.routing import Mixtral
from moe_jax.routing.balance import importance_loss, load_balance_loss, load_loss, routing_metrics
from moe_jax.routing.choice import make_sums
from moe_jax.routing.losses import Importance, LoadBalance, RouterZ, RoutingLosses, scoped_loss
from moe_jax.routing.plan import make_plan, plan_traffic
from tests.routing.given import identity_logits

T, E, K, PADDING = 23, 6, 2, 4


def skewed_logits():
    """Experts 0, 1, 2, ... are less and less likely; nobody wants the last."""
    logits_TE = np.random.default_rng(0).normal(size=(T, E)) - np.arange(E) / 3
    logits_TE[:, -1] -= 30
    return logits_TE


def counts_of(logits_TE):
    best_TK = np.argsort(-logits_TE, axis=1)[:, :K]
    return best_TK, np.bincount(best_TK.reshape(-1), minlength=E)


def test_sums_and_metrics_against_float64():
    """Every metric of a group with padding, drops, a dead expert and rows lost on the way."""
    logits_TE, valid_T = skewed_logits(), np.arange(T) < T - PADDING
    a, sums = identity_logits(Mixtral(k=K), jnp.asarray(logits_TE), valid_T=valid_T)
    capacity = 5
    traffic = plan_traffic(make_plan(a, capacity), jnp.asarray(valid_T))
    traffic = dataclasses.replace(traffic, overflow=jnp.int32(3))
    found = routing_metrics(sums, traffic)

    text = logits_TE[valid_T]
    best_TK, counts_E = counts_of(text)
    prob = scipy.special.softmax(text, axis=1)
    wanted, valid = counts_E.sum(), T - PADDING
    assert wanted == K * valid
    queues, accepted_T = np.zeros(E, int), np.zeros(valid, int)
    for t, experts in enumerate(best_TK):
        for e in experts:
            accepted_T[t] += queues[e] < capacity
            queues[e] += 1
    accepted, mean = accepted_T.sum(), wanted / E
    expected = {
        "load_balance_loss": E * np.sum(counts_E / wanted * prob.mean(0)),
        "router_z_loss": np.mean(scipy.special.logsumexp(text, axis=1) ** 2),
        "router_entropy": np.mean(scipy.stats.entropy(prob, axis=1)),
        "largest_logit": np.abs(text).max(),
        "experts_per_token": K,
        "max_violation": (counts_E.max() - mean) / mean,
        "load_cv": counts_E.std() / mean,
        "dead_experts": np.sum(counts_E == 0),
        "dropped_fraction": (wanted - accepted) / wanted,
        "dropped_token_fraction": np.mean(accepted_T == 0),
        "overflow_fraction": 3 / wanted,
        "capacity_utilization": accepted / (E * capacity),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=2e-6), name
    # Nothing here is 0, 1 or equal to another by chance.
    assert len({round(float(value), 5) for value in found.values()}) >= len(found) - 1
    assert all(value > 0 for value in expected.values())
    assert expected["dead_experts"] == 1


def test_gradient_of_the_load_balance_loss():
    """dL / dz_te = E / T * p_te (f_e - sum_i f_i p_ti): through the probabilities, not the
    counts."""
    logits_TE = skewed_logits()
    _, counts_E = counts_of(logits_TE)
    share_E, prob = counts_E / counts_E.sum(), scipy.special.softmax(logits_TE, axis=1)
    expected = E / T * prob * (share_E - (prob @ share_E)[:, None])

    def loss(logits_TE):
        return load_balance_loss(identity_logits(Mixtral(k=K), logits_TE)[1])

    found = jax.grad(loss)(jnp.asarray(logits_TE, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_losses_of_v_moe_against_float64():
    """CV^2 of the importance and of the load, each of its own sum."""
    rng = np.random.default_rng(1)
    importance_E, load_E = rng.random(E), rng.random(E)
    sums = dataclasses.replace(
        identity_logits(Mixtral(k=K), jnp.zeros((T, E)))[1],
        importance_E=jnp.asarray(importance_E, jnp.float32),
        load_E=jnp.asarray(load_E, jnp.float32),
    )
    for loss, x_E in ((importance_loss, importance_E), (load_loss, load_E)):
        assert float(loss(sums)) == pytest.approx(x_E.var() / x_E.mean() ** 2, rel=1e-5)
        unbiased = x_E.var(ddof=1) / x_E.mean() ** 2
        assert float(loss(sums, variance="unbiased")) == pytest.approx(unbiased, rel=1e-5)


L, ROWS, PIECES = 2, 3, 2


@pytest.mark.parametrize("over_layers", ["sum", "mean"])
@pytest.mark.parametrize("scope", ["group", "row", "micro_batch", "global_batch"])
def test_scopes_against_float64(scope, over_layers):
    """Two layers, three rows of two groups: the statistics of a unit are added up, the losses of
    the units averaged, those of the layers added or averaged."""
    G = ROWS * PIECES
    logits = 2 * np.random.default_rng(2).normal(size=(L, G, T, E))
    a = jax.vmap(jax.vmap(lambda z: identity_logits(Mixtral(k=K), z)))
    _, sums_LG = a(jnp.asarray(logits, jnp.float32))
    losses = RoutingLosses(
        load_balance=LoadBalance(coefficient=0.7, scope=scope),
        importance=Importance(coefficient=0.3, scope=scope),
        router_z=RouterZ(coefficient=0.05, scope=scope),
        over_layers=over_layers,
    )
    units = {"group": G, "row": ROWS}.get(scope, 1)
    by_layer = []
    for layer in logits:
        values = []
        for text in layer.reshape(units, -1, E):
            best_TK, counts_E = counts_of(text)
            prob = scipy.special.softmax(text, axis=1)
            best = np.take_along_axis(text, best_TK, axis=1)
            gate_TE = np.zeros_like(text)
            np.put_along_axis(gate_TE, best_TK, scipy.special.softmax(best, axis=1), axis=1)
            balance = E * np.sum(counts_E / counts_E.sum() * prob.mean(0))
            importance = gate_TE.sum(0).var() / gate_TE.sum(0).mean() ** 2
            z = np.mean(scipy.special.logsumexp(text, axis=1) ** 2)
            values.append(0.7 * balance + 0.3 * importance + 0.05 * z)
        by_layer.append(np.mean(values))
    expected = np.sum(by_layer) if over_layers == "sum" else np.mean(by_layer)
    found = scoped_loss(losses, Mixtral(k=K), sums_LG, (scope,), PIECES)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    others = {"group", "row", "micro_batch", "global_batch"} - {scope}
    assert float(scoped_loss(losses, Mixtral(k=K), sums_LG, tuple(others), PIECES)) == 0


def test_first_choices_without_ranks():
    """Rows in no order: the first choice of a token is the wanted expert with the largest gate."""
    logits_TE = skewed_logits()
    a, sums = identity_logits(Mixtral(k=K), jnp.asarray(logits_TE))
    order = np.random.default_rng(3).permutation(T * K)
    loose = dataclasses.replace(
        a,
        token_R=a.token_R[order],
        expert_R=a.expert_R[order],
        weight_R=a.weight_R[order],
        k=None,
    )
    logits, prob = jnp.asarray(logits_TE, jnp.float32), jax.nn.softmax(jnp.asarray(logits_TE))
    again = make_sums(loose, logits, prob, prob, jnp.ones((T,), bool))
    first_E = np.bincount(np.argmax(logits_TE, axis=1), minlength=E)
    for found in (sums, again):
        np.testing.assert_array_equal(found.first_E, first_E)
        np.testing.assert_array_equal(found.wanted_E, counts_of(logits_TE)[1])
