"""A router from outside the package: Mixtral with a balancing bias that is its state."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moe_jax.routing import Mixtral
from moe_jax.routing.token_choice import choose, make_sums, router_logits, scatter_gates


@dataclass(frozen=True, kw_only=True)
class Biased(Mixtral):
    """A bias that only selects, b += rate * sign(mean count - count). Wang et al. (2408.15664)."""

    rate: float = 0.01

    def state(self, E):
        return {"bias_E": jnp.zeros((E,), jnp.float32)}

    def route(self, params, state, inputs):
        logits_TE = router_logits(params, inputs)
        _, expert_TK = jax.lax.top_k(logits_TE + state["bias_E"][None], self.k)
        weight_TK = jax.nn.softmax(jnp.take_along_axis(logits_TE, expert_TK, axis=1), axis=-1)
        E = logits_TE.shape[1]
        assignments = choose(weight_TK, expert_TK, inputs, E)
        gate_TE = scatter_gates(weight_TK, expert_TK, E)
        prob_TE = jax.nn.softmax(logits_TE, axis=-1)
        return assignments, make_sums(assignments, logits_TE, prob_TE, gate_TE, inputs.valid_T)

    def update(self, state, sums):
        count_E = sums.wanted_E.astype(jnp.float32)
        return {"bias_E": state["bias_E"] + self.rate * jnp.sign(jnp.mean(count_E) - count_E)}
