"""A dense mixture of linear experts, trained on all cases at once with one of several errors."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.local_experts import errors
from experiments.local_experts.tasks import LocalTask
from moe_jax.analysis.specialisation import mutual_information
from moe_jax.routing.choice import scatter_gates
from moe_jax.routing.token_choice.dense_mixture import DenseMixture
from moe_jax.routing.types import RouterInputs

Params = dict[str, Any]
GATE = DenseMixture(bias=True)
LOSSES = ("cooperative", "competing", "likelihood")


def init(key: jax.Array, D: int, E: int, outputs: int) -> Params:
    """A gate and E linear experts: weights uniform in [-0.5, 0.5], biases 0 for the gate."""
    gate_key, weight_key, bias_key = jax.random.split(key, 3)
    specs = GATE.params(D, E)
    return {
        "gate": {
            "kernel": jax.random.uniform(gate_key, specs["kernel"].shape, minval=-0.5, maxval=0.5),
            "bias": specs["bias"].init(gate_key, specs["bias"].shape, jnp.float32),
        },
        "w_EDO": jax.random.uniform(weight_key, (E, D, outputs), minval=-0.5, maxval=0.5),
        "b_EO": jax.random.uniform(bias_key, (E, outputs), minval=-0.5, maxval=0.5),
    }


def forward(params: Params, x_TD: jax.Array, classes: bool) -> tuple[jax.Array, jax.Array]:
    """The gate's probabilities (T, E) and what each expert says (T, E, O), not combined."""
    T, E = x_TD.shape[0], params["b_EO"].shape[0]
    at_T = jnp.arange(T, dtype=jnp.int32)
    inputs = RouterInputs(
        x_TD=x_TD,
        valid_T=jnp.ones((T,), bool),
        id_T=at_T,
        position_T=at_T,
        segment_T=jnp.ones((T,), jnp.int32),
        E=E,
    )
    a, _ = GATE.route(params["gate"], {}, inputs)
    p_TE = scatter_gates(a.weight_R.reshape(T, E), a.expert_R.reshape(T, E), E)
    y_TEO = jnp.einsum("TD,EDO->TEO", x_TD, params["w_EDO"]) + params["b_EO"][None]
    return p_TE, jax.nn.softmax(y_TEO, axis=-1) if classes else y_TEO


def error(
    loss: str, params: Params, x_TD: jax.Array, d_TO: jax.Array, classes: bool, std: jax.Array
) -> jax.Array:
    """The mean over cases of eq. 1.1, 1.2 or 1.3."""
    p_TE, y_TEO = forward(params, x_TD, classes)
    if loss == "likelihood":
        return jnp.mean(errors.likelihood_loss(p_TE, y_TEO, d_TO, std))
    per_case = {
        "cooperative": errors.cooperative_loss,
        "competing": errors.competing_loss,
    }[loss]
    return jnp.mean(per_case(p_TE, y_TEO, d_TO))


@functools.partial(jax.jit, static_argnames=("loss", "classes", "steps", "rate"))
def train(
    params: Params,
    x_STD: jax.Array,
    d_STO: jax.Array,
    std: jax.Array,
    *,
    loss: str,
    classes: bool,
    steps: int,
    rate: float,
) -> Params:
    """Adam on all training cases, the rate falling to 0 by a cosine; everything has a leading S,
    independent seeds."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def one(params: Params, x_TD: jax.Array, d_TO: jax.Array) -> Params:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            gradient = jax.grad(lambda p: error(loss, p, x_TD, d_TO, classes, std))(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
        return params

    return jax.vmap(one)(params, x_STD, d_STO)


def measure(params: Params, task: LocalTask) -> dict[str, float]:
    """Specialisation and error on the test cases.

    test_error: squared error of the combined output, or the share of wrong classes.
    information: bits that a case's first expert (the gate's argmax) tells about its regime.
    drawn_information: the same of an expert drawn by the gate.
    experts_per_case: exp of the gate's entropy, averaged over cases. experts: how many experts are
    the first of at least 1% of the cases.
    """
    p_TE, y_TEO = forward(params, jnp.asarray(task.x["test"]), task.classes)
    p_TE, y_TEO = np.asarray(p_TE, np.float64), np.asarray(y_TEO, np.float64)
    d_TO, regime_T = task.d["test"], task.regime["test"]
    mean_TO = np.einsum("TE,TEO->TO", p_TE, y_TEO)
    if task.classes:
        test_error = np.mean(mean_TO.argmax(axis=1) != d_TO.argmax(axis=1))
    else:
        test_error = np.mean(np.sum((d_TO - mean_TO) ** 2, axis=1))
    first_TE = np.eye(p_TE.shape[1])[p_TE.argmax(axis=1)]
    regime_TR = np.eye(task.regimes)[regime_T]
    entropy_T = -np.sum(p_TE * np.log(np.maximum(p_TE, 1e-300)), axis=1)
    return {
        "test_error": float(test_error),
        "information": mutual_information(regime_TR.T @ first_TE),
        "drawn_information": mutual_information(regime_TR.T @ p_TE),
        "experts_per_case": float(np.mean(np.exp(entropy_T))),
        "experts": float(np.sum(first_TE.mean(axis=0) >= 0.01)),
    }
