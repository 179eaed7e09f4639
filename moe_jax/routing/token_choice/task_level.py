"""Task-level routing: all tokens of a task (a language, say) have the same experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moe_jax.config.fields import Rule, at_least
from moe_jax.ops.precision import upcast
from moe_jax.routing.choice import admissible, best, renormalize, softmax
from moe_jax.routing.token_choice.base import BaseTokenChoice
from moe_jax.routing.types import (
    Assignments,
    ParamSpec,
    RouterInputs,
    RouterParams,
    RouterState,
    Sums,
)


@dataclass(frozen=True, kw_only=True)
class TaskLevel(BaseTokenChoice):
    """p = softmax(w_n) for the task n of a token's row, w (N, E) trained; the k largest of p, with
    weights p, or p / sum of the k if `renormalize`. Ties go to the lower expert.

    tasks: N; 0: as many as the data has (target languages of a translation, domains of texts).
    Tokens without a task are of the first one.

    Kudugunta et al., "Beyond Distillation: Task-level Mixture-of-Experts for Efficient Inference"
    (2110.03742): by target language or by pair of languages, so that a language is served with its
    own k experts of each layer alone. With few tasks the balance of loads is bounded: of a task
    with a share of s of the tokens each of its experts has at least that share.
    Cost: no product, N E parameters a layer.
    """

    reads_tasks = True
    takes_mask = True

    tasks: int = 0
    k: int = 2
    renormalize: bool = True

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        yield from at_least(self, 0, "tasks")

    def warn(self) -> Iterator[str]:
        if self.k == 1 and self.renormalize:
            yield (
                "moe.router.k = 1 with renormalize: every weight is the constant 1, so the router "
                "gets no gradient from the task"
            )

    def params(self, D: int, E: int) -> dict[str, ParamSpec]:
        init = jax.nn.initializers.normal(1.0)
        table = ParamSpec(
            shape=(max(self.tasks, 1), E), init=init, axes=(None, None), matrix=None, decays=False
        )
        return {"tasks": table}

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_NE = upcast(params["tasks"])
        task_T = inputs.task_T
        if task_T is None:
            task_T = jnp.zeros(inputs.valid_T.shape, jnp.int32)
        logits_TE = logits_NE[jnp.clip(task_T, 0, logits_NE.shape[0] - 1)]
        if inputs.allowed_E is not None:
            logits_TE = jnp.where(inputs.allowed_E[None], logits_TE, -jnp.inf)
        prob_TE = softmax(logits_TE)
        weight_TK, expert_TK = best(prob_TE, self.k, admissible(prob_TE, logits_TE))
        if self.renormalize:
            weight_TK = renormalize(weight_TK)
        return self.decide(weight_TK, expert_TK, inputs, logits_TE, prob_TE)
