"""Epochs to the same error of experts and of hidden units: what is measured, and the verdict."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.local_experts.judged import difference
from experiments.vowels.modern import modern
from experiments.vowels.networks import Network, Params, descend
from moe_jax.data.vowels import VowelRows

NETWORKS = (
    Network("4 experts", experts=4, error="likelihood"),
    Network("8 experts", experts=8, error="likelihood"),
    Network("6 hidden units", hidden=6),
    Network("12 hidden units", hidden=12),
    Network("4 experts, squared error of the sum", experts=4),
    Network("8 experts, squared error of the sum", experts=8),
)
# Of the paper, table 1: per cent right in training and test, epochs and their deviation.
PUBLISHED = {
    "4 experts": (88, 90, 1124, 23),
    "8 experts": (88, 90, 1083, 12),
    "6 hidden units": (88, 90, 2209, 83),
    "12 hidden units": (88, 90, 2435, 124),
}
PAIRS = (("4 experts", "6 hidden units"), ("8 experts", "12 hidden units"))
CRITERION = 0.08  # half the squared error, mean over the cases that train
EPOCHS = 4000  # at the most
RATES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
SEARCH_SEEDS, FIRST_SEED = 5, 100  # the rate is chosen by other seeds than those that are told
IN_USE = 0.01  # share of the cases whose first expert one is, from which it is in use


def run(train: VowelRows, held: VowelRows, seeds: int) -> dict[str, Any]:
    """Everything that was measured, as JSON."""
    results: dict[str, Any] = {
        "criterion": CRITERION, "epochs": EPOCHS, "rates": list(RATES),
        "seeds": [FIRST_SEED, FIRST_SEED + seeds - 1], "networks": {},
    }  # fmt: skip
    for network in NETWORKS:
        rate, tried = best_rate(network, train)
        params, epochs_S = trained(network, train, rate, range(FIRST_SEED, FIRST_SEED + seeds))
        results["networks"][network.name] = {
            "rate": rate,
            "mean_epochs_by_rate": tried,
            "epochs": epochs_S.tolist(),
            "reached": int((epochs_S < EPOCHS).sum()),
            **{
                f"right_{name}": right(network, params, rows).round(4).tolist()
                for name, rows in (("training", train), ("test", held))
            },
            **(in_use(network, params, train) if network.experts else {}),
        }
    results["modern"] = modern(train, held, range(FIRST_SEED, FIRST_SEED + seeds))
    results["verdict"] = verdict(results["networks"])
    return results


def best_rate(network: Network, train: VowelRows) -> tuple[float, dict[str, float]]:
    """The rate with which most seeds reach the criterion, of those the fastest; and the mean epochs
    of all."""
    tried, best = {}, (0, -math.inf, 0.0)
    for rate in RATES:
        _, epochs_S = trained(network, train, rate, range(SEARCH_SEEDS))
        tried[str(rate)] = float(epochs_S.mean())
        best = max(best, (int((epochs_S < EPOCHS).sum()), -tried[str(rate)], rate))
    return best[2], tried


def trained(
    network: Network, rows: VowelRows, rate: float, seeds: range
) -> tuple[Params, np.ndarray]:
    """The weights of each seed at the criterion, on a leading axis, and the epoch of it."""
    x_TD, d_TO = jnp.asarray(rows.features), jnp.eye(len(rows.classes))[rows.labels]
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    start = jax.vmap(lambda key: network.init(key, x_TD.shape[1], d_TO.shape[1]))(keys)
    params, epochs_S = descend(network, start, x_TD, d_TO, jnp.float32(rate), CRITERION, EPOCHS)
    return params, np.asarray(epochs_S)


def right(network: Network, params: Params, rows: VowelRows) -> np.ndarray:
    """The share of cases whose largest output is right, by seed."""
    y_STO = jax.vmap(lambda p: network.output(p, jnp.asarray(rows.features)))(params)
    return np.mean(np.asarray(y_STO).argmax(axis=2) == rows.labels, axis=1)


def in_use(network: Network, params: Params, rows: VowelRows) -> dict[str, list[float]]:
    """By seed: how many experts are the first of at least 1 % of the cases, and the experts that a
    case has, exp of its gate's entropy in the mean."""
    p_STE = jax.vmap(lambda p: network.parts(p, jnp.asarray(rows.features))[0])(params)
    p_STE = np.asarray(p_STE, np.float64)
    first_ST = p_STE.argmax(axis=2)
    shares_SE = np.stack([(first_ST == e).mean(axis=1) for e in range(network.experts)], axis=1)
    entropy_S = -(p_STE * np.log(np.maximum(p_STE, 1e-300))).sum(axis=2).mean(axis=1)
    return {
        "experts_in_use": (shares_SE >= IN_USE).sum(axis=1).tolist(),
        "experts_per_case": np.exp(entropy_S).round(3).tolist(),
    }


def verdict(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Each claim with its difference and 95 % interval over seeds."""
    found = []
    for experts, units in PAIRS:
        logs = [np.log2(measured[name]["epochs"]).tolist() for name in (experts, units)]
        delta = difference(*logs)
        found.append({
            "claim": f"{experts} take fewer epochs than {units} (log2 of the ratio; -1 is half)",
            "difference": delta, "holds": bool(delta["high"] < 0),
        })  # fmt: skip
        test = [measured[name]["right_test"] for name in (experts, units)]
        found.append({
            "claim": f"{experts} are no worse in test than {units}, by 2 points at the most",
            "difference": (delta := difference(*test)), "holds": bool(delta["low"] > -0.02),
        })  # fmt: skip
        squared = f"{experts}, squared error of the sum"
        cases = [measured[name]["experts_per_case"] for name in (experts, squared)]
        found.append({
            "claim": f"{experts} by the likelihood have fewer experts a case than by that error",
            "difference": (delta := difference(*cases)), "holds": bool(delta["high"] < 0),
        })  # fmt: skip
    return found
