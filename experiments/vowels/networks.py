"""The networks of the paper: experts without hidden units under a gate, and one hidden layer."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.local_experts import errors
from experiments.local_experts.mixture import GATE
from moe_jax.routing.choice import scatter_gates
from moe_jax.routing.types import RouterInputs

Params = dict[str, Any]
SPREAD = 0.5  # weights start uniform in [-SPREAD, SPREAD]


@dataclass(frozen=True)
class Network:
    """experts under a gate, or hidden units; outputs are logistic. error: "likelihood" (eq. 1.3)
    or "squared", of what the whole says (eq. 1.1; with hidden units there is no other)."""

    name: str
    experts: int = 0
    hidden: int = 0
    error: str = "squared"

    def init(self, key: Array, inputs: int, outputs: int) -> Params:
        draw = functools.partial(jax.random.uniform, minval=-SPREAD, maxval=SPREAD)
        keys = jax.random.split(key, 4)
        if self.experts:
            specs = GATE.params(inputs, self.experts)
            gate = {name: draw(k, specs[name].shape) for name, k in zip(specs, keys, strict=False)}
            weights = draw(keys[2], (self.experts, inputs, outputs))
            return {"gate": gate, "w_EDO": weights, "b_EO": draw(keys[3], (self.experts, outputs))}
        return {
            "in_DH": draw(keys[0], (inputs, self.hidden)),
            "in_H": draw(keys[1], (self.hidden,)),
            "out_HO": draw(keys[2], (self.hidden, outputs)),
            "out_O": draw(keys[3], (outputs,)),
        }

    def output(self, params: Params, x_TD: Float[Array, "T D"]) -> Float[Array, "T O"]:
        """What the whole says."""
        if not self.experts:
            hidden = jax.nn.sigmoid(x_TD @ params["in_DH"] + params["in_H"][None])
            return jax.nn.sigmoid(hidden @ params["out_HO"] + params["out_O"][None])
        p_TE, y_TEO = self.parts(params, x_TD)
        return jnp.einsum("TE,TEO->TO", p_TE, y_TEO)

    def parts(
        self, params: Params, x_TD: Float[Array, "T D"]
    ) -> tuple[Float[Array, "T E"], Float[Array, "T E O"]]:
        """The gate's probabilities, and what each expert says."""
        y_TEO = jnp.einsum("TD,EDO->TEO", x_TD, params["w_EDO"]) + params["b_EO"][None]
        return gate_of(params, x_TD), jax.nn.sigmoid(y_TEO)

    def loss(self, params: Params, x_TD: Float[Array, "T D"], d_TO: Float[Array, "T O"]) -> Array:
        """Mean over cases; the squared error with the 1/2 of its time."""
        if self.error == "likelihood":
            return jnp.mean(errors.likelihood_loss(*self.parts(params, x_TD), d_TO))
        return squared_error(self.output(params, x_TD), d_TO)


def gate_of(params: Params, x_TD: Float[Array, "T D"]) -> Float[Array, "T E"]:
    """moe_jax's own dense mixture, as an array of probabilities."""
    (T, _), E = x_TD.shape, params["b_EO"].shape[0]
    at_T = jnp.arange(T, dtype=jnp.int32)
    inputs = RouterInputs(
        x_TD=x_TD, valid_T=jnp.ones(T, bool), id_T=at_T, position_T=at_T,
        segment_T=jnp.ones(T, jnp.int32), E=E,
    )  # fmt: skip
    chosen, _ = GATE.route(params["gate"], {}, inputs)
    return scatter_gates(chosen.weight_R.reshape(T, E), chosen.expert_R.reshape(T, E), E)


def squared_error(y_TO: Float[Array, "T O"], d_TO: Float[Array, "T O"]) -> Array:
    """Half of the squared distance, mean over cases."""
    return 0.5 * jnp.mean(jnp.sum(jnp.square(d_TO - y_TO), axis=1))


@functools.partial(jax.jit, static_argnames=("network", "epochs"))
def descend(
    network: Network,
    start: Params,
    x_TD: Array,
    d_TO: Array,
    rate: Float[Array, ""],
    criterion: float,
    epochs: int,
) -> tuple[Params, Array]:
    """Gradient descent on all cases at once, without momentum, for seeds that stand on a leading
    axis: the weights when the squared error first is at `criterion` (or at the end), and the epoch
    at which it was; `epochs` where it never is."""

    def one(params: Params, reached: Array, epoch: Array) -> tuple[Params, Array]:
        there = squared_error(network.output(params, x_TD), d_TO) <= criterion
        reached = jnp.where(there & (reached == epochs), epoch, reached)
        gradient = jax.grad(network.loss)(params, x_TD, d_TO)
        moves = (reached == epochs).astype(jnp.float32)
        return jax.tree.map(lambda p, g: p - moves * rate * g, params, gradient), reached

    def step(carry: Any) -> Any:
        params, reached_S, epoch = carry
        params, reached_S = jax.vmap(one, in_axes=(0, 0, None))(params, reached_S, epoch)
        return params, reached_S, epoch + 1

    seeds = jax.tree.leaves(start)[0].shape[0]
    carry = start, jnp.full(seeds, epochs, jnp.int32), jnp.zeros((), jnp.int32)
    params, reached_S, _ = jax.lax.while_loop(
        lambda carry: jnp.any(carry[1] == epochs) & (carry[2] < epochs), step, carry
    )
    return params, reached_S
