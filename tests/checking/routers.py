"""Routers from outside the package: Mixtral with a balancing bias that is its state, and one whose
statistics are known beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.routing import Mixtral
from moe_jax.routing.choice import choose, make_sums, router_logits, scatter_gates


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


@dataclass(frozen=True, kw_only=True)
class ByIds(Mixtral):
    """Logits of the token's id alone, plus the first row of the kernel, another in each layer: so
    numpy knows every statistic from the batch and these rows. `table` holds them."""

    drop_order: str = "choice_major"

    @staticmethod
    def table(V: int = 64, E: int = 8) -> np.ndarray:
        return 2 * np.random.default_rng(11).normal(size=(V, E)) - np.arange(E) / 2

    def own_sums(self, E):
        return {"ids": jnp.zeros((), jnp.float32)}

    def route(self, params, state, inputs):
        table_VE = jnp.asarray(self.table(), jnp.float32)
        logits_TE = table_VE[inputs.id_T] + params["kernel"][0][None]
        best_TK, expert_TK = jax.lax.top_k(logits_TE, self.k)
        prob_TE = jax.nn.softmax(logits_TE, axis=-1)
        own = {"ids": jnp.sum(jnp.where(inputs.valid_T, inputs.id_T, 0)).astype(jnp.float32)}
        return self.decide(
            jax.nn.softmax(best_TK, axis=-1),
            expert_TK,
            inputs,
            logits_TE,
            prob_TE,
            load_TE=jnp.square(prob_TE),
            own=own,
        )
