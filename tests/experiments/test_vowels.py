"""The vowels of 1991: descent and gate against numpy, and the page against its results."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.vowels.judged import NETWORKS, verdict
from experiments.vowels.networks import Network, descend, gate_of, squared_error

HERE = Path(__file__).parents[2] / "experiments/vowels"


@pytest.fixture
def cases():
    random = np.random.default_rng(0)
    label = np.arange(60) % 3
    x = random.normal(size=(60, 2)).astype(np.float32) + np.array([[-2, 0], [2, 0], [0, 3]])[label]
    return jnp.asarray(x, jnp.float32), jnp.eye(3)[label]


def test_the_gate_is_a_softmax(cases):
    x, _ = cases
    params = Network("", experts=4).init(jax.random.key(0), 2, 3)
    kernel, bias = (np.asarray(params["gate"][name]) for name in ("kernel", "bias"))
    power = np.exp(np.asarray(x) @ kernel + bias)
    wanted = power / power.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(gate_of(params, x), wanted, rtol=1e-5)


@pytest.mark.parametrize("network", [NETWORKS[0], NETWORKS[2], NETWORKS[4]], ids=lambda n: n.name)
def test_descent_stops_at_the_criterion(network, cases):
    """Each seed by itself, at the first epoch at which its error is small enough."""
    x, d = cases
    starts = [network.init(jax.random.key(seed), 2, 3) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    params, epochs = descend(network, stacked, x, d, jnp.float32(4.0), 0.1, 400)
    for seed, params_one in enumerate(starts):
        epoch, one = 0, params_one
        while float(squared_error(network.output(one, x), d)) > 0.1 and epoch < 400:
            gradient = jax.grad(network.loss)(one, x, d)
            one = jax.tree.map(lambda p, g: p - 4.0 * g, one, gradient)
            epoch += 1
        assert int(epochs[seed]) == epoch and 0 < epoch < 400
        mine = jax.tree.map(lambda leaf, seed=seed: leaf[seed], params)
        np.testing.assert_allclose(network.output(mine, x), network.output(one, x), atol=2e-3)


def test_the_page_says_what_was_measured():
    results = json.loads((HERE / "results.json").read_text())
    page = (HERE / "README.md").read_text()
    assert verdict(results["networks"]) == results["verdict"]
    for name, one in results["networks"].items():
        first, middle, third = np.percentile(one["epochs"], [25, 50, 75])
        right = [100 * np.mean(one[f"right_{part}"]) for part in ("training", "test")]
        row = f"| {name} | {one['rate']:g} | {middle:.0f} ({first:.0f} to {third:.0f}) | "
        assert row + f"{right[0]:.1f} % | {right[1]:.1f} %" in page
    for claim in results["verdict"]:
        word = "yes" if claim["holds"] else "**no**"
        d = claim["difference"]
        interval = f"{d['mean']:+.2f} [{d['low']:+.2f}, {d['high']:+.2f}]"
        assert f"| {claim['claim']} | {interval} | {word} |" in page
