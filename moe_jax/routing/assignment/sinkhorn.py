"""Choices by the optimal transport between tokens and experts that Sinkhorn's iteration finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_jax.config.fields import Rule, at_least, one_of, schedulable
from moe_jax.ops.precision import upcast
from moe_jax.routing.assignment.base import BaseBalancedChoice, count_moved
from moe_jax.routing.choice import admissible, best, router_logits, softmax
from moe_jax.routing.scores import SCORES
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums

# How much a choice leans to the token's own logits.
LEANING = 1e-3


def transport_plan(
    logits_TE: Float[Array, "T E"],
    valid_T: Bool[Array, "T"],
    iterations: int,
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, "T E"]:
    """The plan P >= 0 with sum_te P_te (logit_te - temperature * log P_te) the largest, where each
    valid token's row sums to 1 and each expert's column to V / E, of V valid tokens.

    P_te = exp(logit_te / temperature + f_t + g_e); Sinkhorn's iteration in logarithms sets f for
    the rows, then g for the columns, `iterations` times, and f once more: rows are exact, columns
    as nearly as so many iterations bring them (fewer suffice at a higher temperature).
    Rows of padding are 0. Entries of -inf stay 0: columns that no valid token can use are left out
    (E counts the others), and so are tokens without a column.
    """
    return jnp.exp(_log_plan(logits_TE, valid_T, iterations, temperature))


def _log_plan(
    logits_TE: Array, valid_T: Array, iterations: int, temperature: float | Array
) -> Float[Array, "T E"]:
    """The logarithm of `transport_plan`, in which small entries are still apart."""
    logits_TE = upcast(logits_TE)
    open_TE = valid_T[:, None] & (logits_TE > -jnp.inf)
    open_T, open_E = jnp.any(open_TE, axis=1), jnp.any(open_TE, axis=0)
    best_T1 = jnp.max(logits_TE, axis=1, keepdims=True, where=open_TE, initial=-jnp.inf)
    # The best entry of a row is 0, so no scale overflows.
    log_TE = jnp.where(open_TE, logits_TE - best_T1, 0) / jnp.asarray(temperature, jnp.float32)
    log_TE = jnp.where(open_TE, log_TE, -jnp.inf)
    tokens = jnp.sum(open_T, dtype=jnp.float32)
    target = jnp.log(jnp.maximum(tokens, 1)) - jnp.log(
        jnp.maximum(jnp.sum(open_E, dtype=jnp.float32), 1)
    )

    def rows(g_E: Array) -> Array:
        return _normalized(log_TE + g_E[None, :], open_T)

    def step(_: Array, g_E: Array) -> Array:
        lse_E = jax.nn.logsumexp(jnp.where(open_E[None, :], rows(g_E), 0), axis=0)
        return jnp.where(open_E, g_E + target - lse_E, 0)

    return rows(jax.lax.fori_loop(0, iterations, step, jnp.zeros(open_E.shape, log_TE.dtype)))


def _normalized(log_TE: Array, open_T: Array) -> Array:
    """Each open row minus its logsumexp; -inf in the others."""
    log_TE = jnp.where(open_T[:, None], log_TE, 0)
    lse_T1 = jax.nn.logsumexp(log_TE, axis=1, keepdims=True)
    return jnp.where(open_T[:, None], log_TE - lse_T1, -jnp.inf)


@dataclass(frozen=True, kw_only=True)
class Sinkhorn(BaseBalancedChoice):
    """The k largest entries of each token's row of the transport plan; weights are the scores of
    these experts, which do not know of the plan.

    S-BASE, Clark et al. (2202.01169): entropy-regularised transport (`transport_plan`) in place of
    the assignment of BASE layers, in training; the k largest logits in evaluation (`evaluation`).
    The plan of a token alone in its group, or of tokens that are all equal, is 1 / E everywhere and
    chooses nothing but rounding errors; entries are therefore compared by log P + 0.001 logit /
    temperature. No gradient through the plan. Ties go to the lower expert.

    As in Megatron-Core's router the score is "sigmoid" with k = 1; that takes "softmax" over all
    experts with k > 1 (`score`).

    The plan is balanced, the choices are only nearly: the lower the `temperature` the nearer, and
    the more `iterations` it takes. A capacity therefore may drop. Cost: two logsumexps over T x E
    an iteration; nothing is differentiated.

    Metrics besides `moved`: `plan_imbalance`, the largest column sum of the plans over the mean,
    less 1 (30 iterations leave under 1e-4 where logits range over 10 temperatures, more beyond).

    Megatron-Core iterates until the columns' factors move by less than 1e-4 in the mean, without
    logarithms and without a temperature; a fixed number does not depend on rounding.
    """

    k: int = 1
    score: str = "sigmoid"
    temperature: float = schedulable(1.0)
    iterations: int = 30

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from one_of(self, SCORES, "score")
        yield from at_least(self, 1, "iterations")
        if self.temperature <= 0:
            yield "temperature", "must be above 0"

    def own_sums(self, E: int) -> dict[str, Array]:
        return {"moved": jnp.zeros((), jnp.float32), "plan_E": jnp.zeros((E,), jnp.float32)}

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TE = router_logits(params, inputs, self.jitter)
        score_TE = SCORES[self.score](logits_TE)
        by_TE, own = admissible(score_TE, logits_TE), {}
        if self.balances(inputs):
            fixed_TE = jax.lax.stop_gradient(logits_TE)
            temperature = jnp.asarray(self.temperature, jnp.float32)
            log_TE = _log_plan(fixed_TE, inputs.valid_T, self.iterations, temperature)
            by_TE = log_TE + LEANING * fixed_TE / temperature
        weight_TK, expert_TK = best(score_TE, self.k, by_TE)
        if inputs.train:
            own = {
                "moved": count_moved(fixed_TE, expert_TK[:, 0], inputs.valid_T),
                "plan_E": jnp.sum(jnp.exp(log_TE), axis=0),
            }
        return self.decide(weight_TK, expert_TK, inputs, logits_TE, softmax(logits_TE), own=own)

    def metrics(self, state: RouterState, sums: Sums) -> dict[str, Float[Array, ""]]:
        metrics = super().metrics(state, sums)
        if "plan_E" in sums.own:
            plan_E = sums.own["plan_E"]
            mean = jnp.sum(plan_E) / plan_E.shape[0]
            metrics["plan_imbalance"] = jnp.max(plan_E) / jnp.where(mean > 0, mean, 1) - 1
        return metrics
