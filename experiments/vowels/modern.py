"""The same vowels by a sparse layer of today: top-k, a balance loss, residual, Adam."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

import moe_jax
from moe_jax.data.vowels import VowelRows

WIDTH, EXPERTS, HIDDEN, K = 8, 8, 8, 2
STEPS, RATE = 500, 0.01


class TopKNetwork(nnx.Module):
    """Formants -> a token -> the sparse layer beside a residual -> logits."""

    def __init__(self, inputs: int, classes: int, rngs: nnx.Rngs):
        self.inward = nnx.Linear(inputs, WIDTH, rngs=rngs)
        self.moe = moe_jax.MoE(
            WIDTH, experts=EXPERTS, hidden=HIDDEN, router=moe_jax.routers.Mixtral(k=K), rngs=rngs
        )
        self.outward = nnx.Linear(WIDTH, classes, rngs=rngs)

    def __call__(self, x_TD: Float[Array, "T D"]) -> tuple[Float[Array, "T C"], Any]:
        h_TD = self.inward(x_TD)
        y_TD, report = self.moe(h_TD)
        return self.outward(h_TD + y_TD), report


def modern(train: VowelRows, held: VowelRows, seeds: range) -> dict[str, Any]:
    """By seed: the share right in training and test, and what its routing is in training."""
    inputs, classes = train.features.shape[1], len(train.classes)
    found: dict[str, list[float]] = {}
    for seed in seeds:
        graph, state = nnx.split(TopKNetwork(inputs, classes, nnx.Rngs(seed)))
        state = _trained(graph, state, jnp.asarray(train.features), jnp.asarray(train.labels))
        network = nnx.merge(graph, state)
        measured: dict[str, float] = {}
        for name, rows in (("training", train), ("test", held)):
            logits_TC, report = network(jnp.asarray(rows.features))
            right = np.asarray(logits_TC).argmax(axis=1) == rows.labels
            measured[f"right_{name}"] = round(float(right.mean()), 4)
            if name == "training":
                routing = report.metrics()
                load_E = (
                    np.asarray(report.sums.wanted_E, np.float64).reshape(-1, EXPERTS).sum(axis=0)
                )
                measured["experts_in_use"] = int((load_E / load_E.sum() >= 0.01).sum())
                measured["max_violation"] = round(float(routing["moe/max_violation"]), 3)
        for name, value in measured.items():
            found.setdefault(name, []).append(value)
    return {"experts": EXPERTS, "k": K, "steps": STEPS, "rate": RATE, **found}


@partial(jax.jit, static_argnames="graph")
def _trained(graph: Any, state: Any, x_TD: Array, label_T: Array) -> Any:
    optimizer = optax.adam(RATE)

    def loss(state: Any) -> Array:
        logits_TC, report = nnx.merge(graph, state)(x_TD)
        nats_T = optax.softmax_cross_entropy_with_integer_labels(logits_TC, label_T)
        return jnp.mean(nats_T) + report.loss

    def step(carry: Any, _: None) -> tuple[Any, None]:
        state, moments = carry
        updates, moments = optimizer.update(jax.grad(loss)(state), moments)
        return (optax.apply_updates(state, updates), moments), None

    (state, _), _ = jax.lax.scan(step, (state, optimizer.init(state)), length=STEPS)
    return state
