"""ReMoE: ReLU gates, held sparse by an L1 penalty that a controller adapts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.config.fields import Rule
from moe_jax.routing.choice import renormalize, router_logits
from moe_jax.routing.token_choice.variable import BaseVariableChoice, active_experts, by_rank
from moe_jax.routing.types import Assignments, RouterInputs, RouterParams, RouterState, Sums

# The bounds of lambda: in float32 it could reach 0, and no factor would bring it back.
MIN_LAMBDA, MAX_LAMBDA = 1e-20, 1e2


@dataclass(frozen=True, kw_only=True)
class ReMoE(BaseVariableChoice):
    """R = relu(x W); every expert with R > 0, with weight R.

    k: experts that a token shall have on average, by the controller, not by the choice.
    Loss (`l1`): lambda sum_e f_e mean_t R_te, with f_e = E / (k T) * (tokens with R_te > 0); no
    gradient flows through f. Experts above the mean load are pushed harder.
    Controller, once per optimizer step, S the share of gates that are 0:
        lambda <- lambda * alpha^sign((1 - k / E) - S),  from initial_lambda on.
    Metrics: `lambda`, `sparsity`. Ties go to the lower expert. A token may have no expert. For
    statistics the probabilities are R over its sum; of a token without experts all are equal.

    What to expect: the target takes about log(l / initial_lambda) / log(alpha) steps, l the lambda
    at which the L1 balances the task. Lambda only pushes down: gates are opened by the task alone,
    so that after a start near l or above experts may stay dead. Where inputs have mean 0, half of
    the gates are positive whatever W, and lambda runs up to its bound: set `bias`.

    Wang et al. (2412.14711) section 3: ReLU gates, adaptive L1, load balancing within the L1;
    lambda_0 = 1e-8, alpha = 1.2. We differ: lambda is a state of each layer, and each layer comes
    to the target, where the paper has one lambda for the mean sparsity and lets layers differ; it
    stays within 1e-20 and 100; the loss is summed over layers (moe.losses.over_layers), not
    averaged, which lambda makes up for. moe.losses.router.coefficient must stay 1.
    Cost: at the start half of all pairs are active, E / (2 k) times the work of the end, and there
    are T E rows. With a capacity (of k experts per token) or `k_max` < E the surplus is lost in
    that time; with `k_max` it is each token's smallest gates, which loss and sparsity still count.
    """

    k: int = 2
    initial_lambda: float = 1e-8
    alpha: float = 1.2

    def check(self) -> Iterator[Rule]:
        yield from super().check()
        if not MIN_LAMBDA <= self.initial_lambda <= MAX_LAMBDA:
            yield "initial_lambda", f"must be between {MIN_LAMBDA} and {MAX_LAMBDA}"
        if self.alpha < 1:
            yield "alpha", "must be at least 1"

    def check_experts(self, E: int) -> Iterator[Rule]:
        if self.k > E:
            yield "k", f"must be at most the number of experts, {E}"

    def warn(self) -> Iterator[str]:
        if self.k_max is not None and self.k_max <= self.k:
            yield (
                f"moe.router.k_max = {self.k_max} is no more than k = {self.k}, which tokens shall "
                "have on average: it cuts half of them"
            )

    def experts_per_token(self, E: int, T: int) -> float:
        return float(min(self.k, self.choices(E)))

    def state(self, E: int) -> dict[str, Array]:
        return {"lambda": jnp.asarray(self.initial_lambda, jnp.float32)}

    def own_sums(self, E: int) -> dict[str, Array]:
        return {**super().own_sums(E), "l1_E": jnp.zeros((E,), jnp.float32)}

    def route(
        self, params: RouterParams, state: RouterState, inputs: RouterInputs
    ) -> tuple[Assignments, Sums]:
        logits_TE = router_logits(params, inputs, self.jitter)
        gate_TE = jax.nn.relu(logits_TE)
        ranked_TE, expert_TE = by_rank(gate_TE, logits_TE)
        open_TE = (logits_TE > -jnp.inf).astype(jnp.float32)
        idle_T1 = jnp.all(gate_TE <= 0, axis=1, keepdims=True)
        prob_TE = renormalize(jnp.where(idle_T1, open_TE, gate_TE))
        own = {}
        if inputs.train:
            l1_TE = jnp.where(inputs.valid_T[:, None], gate_TE, 0)
            own["l1_E"] = state["lambda"] * jnp.sum(l1_TE, axis=0)
        return self.decide_taken(
            ranked_TE > 0, ranked_TE, expert_TE, inputs, logits_TE, prob_TE, own
        )

    def losses(self, sums: Sums) -> dict[str, Float[Array, ""]]:
        if "l1_E" not in sums.own:
            return {}
        tokens = jnp.maximum(sums.valid, 1).astype(jnp.float32)
        E = sums.wanted_E.shape[-1]
        f_E = jax.lax.stop_gradient(active_experts(sums)) * (E / self.k) / tokens
        return {"l1": jnp.sum(f_E * sums.own["l1_E"]) / tokens}

    def metrics(self, state: RouterState, sums: Sums) -> dict[str, Float[Array, ""]]:
        own = {"lambda": state["lambda"], "sparsity": _sparsity(sums)}
        return {**super().metrics(state, sums), **own}

    def update(self, state: RouterState, sums: Sums) -> RouterState:
        too_dense = (1 - self.k / sums.wanted_E.shape[-1]) - _sparsity(sums)
        step = jnp.sign(jnp.where(sums.valid > 0, too_dense, 0))
        grown = state["lambda"] * jnp.float32(self.alpha) ** step
        return {"lambda": jnp.clip(grown, MIN_LAMBDA, MAX_LAMBDA)}


def _sparsity(sums: Sums) -> Float[Array, ""]:
    """The share of gates that are 0."""
    tokens = jnp.maximum(sums.valid, 1).astype(jnp.float32)
    return 1 - jnp.mean(active_experts(sums)) / tokens
