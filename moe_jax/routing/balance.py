"""Losses and metrics of routing: functions of `Sums` that were reduced over their scope before.

Nothing here knows devices or groups, so no denominator can be local by mistake.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from moe_jax.routing.types import Sums, Traffic

# The load-balance loss of a perfectly balanced router, by codebase. One number, named, so that a
# paper's config can be written with the paper's own coefficient.
NORMALIZATIONS: dict[str, Callable[[Array], Array | float]] = {
    "one": lambda k: 1.0,  # ours, V-MoE, Tutel, MegaBlocks, Megatron-Core, Switch (k = 1)
    "hugging_face": lambda k: k,
    "flaxformer": lambda k: k,
    "maxtext": lambda k: k,
    "levanter": lambda k: 1 / k,
}


def _ratio(numerator: Array, denominator: Array) -> Float[Array, "..."]:
    """numerator / denominator in float32, 0 where the denominator is 0 (an empty scope)."""
    numerator = numerator.astype(jnp.float32)
    denominator = denominator.astype(jnp.float32)
    return numerator / jnp.where(denominator == 0, 1, denominator)


def squared_cv(x_E: Shaped[Array, "E"], variance: str = "population") -> Float[Array, ""]:
    """(std / mean)^2 over experts; 0 for an empty x.

    variance: "population" (divides by E; V-MoE and Shazeer's published code) or "unbiased"
    (by E-1). Shazeer et al. (1701.06538) eq. 6-7.
    """
    x_E = x_E.astype(jnp.float32)
    E = x_E.shape[0]
    mean = jnp.mean(x_E)
    spread = jnp.sum(jnp.square(x_E - mean)) / (E if variance == "population" else max(E - 1, 1))
    return _ratio(spread, jnp.square(mean))


def load_balance_loss(
    sums: Sums, *, count: str = "all", normalization: str = "one"
) -> Float[Array, ""]:
    """E * sum_e (share of assignments of e) * (mean probability of e); balanced = 1.

    f_e = counts_e / sum(counts), p_e = prob_e / valid, loss = E * sum_e f_e p_e, times the
    normalization's value of a balanced router. The gradient flows through p only.

    count: "all" choices or the "first" (GShard counts only the first). Counts are taken before
    drops. Switch (2101.03961) eq. 4-6, GShard (2006.16668) algorithm 1.
    """
    counts_E = sums.wanted_E if count == "all" else sums.first_E
    E = counts_E.shape[-1]
    total = jnp.sum(counts_E)
    k = _ratio(jnp.sum(sums.wanted_E), sums.valid)
    share_E = _ratio(counts_E, total)
    prob_E = _ratio(sums.prob_E, sums.valid)
    balanced = jax.lax.stop_gradient(NORMALIZATIONS[normalization](jnp.maximum(k, 1e-9)))
    return E * jnp.sum(share_E * prob_E) * balanced


def device_balance_loss(sums: Sums, groups: int) -> Float[Array, ""]:
    """D * sum_d (share of assignments of group d) * (mean probability of group d); balanced = 1.

    The E experts lie in D = groups contiguous blocks of E / D, as on D devices. With f_e = E
    counts_e / sum(counts) and p_e = prob_e / valid it is sum_d mean_{e in d}(f_e) sum_{e in d} p_e:
    DeepSeekMoE (2401.06066) eq. 15-17, DeepSeek-V2 (2405.04434) section 2.2.3. groups = E is
    `load_balance_loss` of all choices, groups = 1 the constant 1. The gradient flows through p.

    Raises ValueError where groups does not divide E.
    """
    E = sums.wanted_E.shape[-1]
    if groups < 1 or E % groups:
        raise ValueError(f"{groups} groups of equal size do not exist among {E} experts")
    counts_De = sums.wanted_E.reshape(groups, E // groups)
    prob_De = sums.prob_E.reshape(groups, E // groups)
    share_D = _ratio(jnp.sum(counts_De, axis=1), jnp.sum(counts_De))
    prob_D = _ratio(jnp.sum(prob_De, axis=1), sums.valid)
    return groups * jnp.sum(share_D * prob_D)


def importance_loss(sums: Sums, *, variance: str = "population") -> Float[Array, ""]:
    """CV(importance)^2, importance_e = sum of gates of e. Shazeer et al. (1701.06538) eq. 6-7."""
    return squared_cv(sums.importance_E, variance)


def load_loss(sums: Sums, *, variance: str = "population") -> Float[Array, ""]:
    """CV(load)^2, load_e = sum over tokens of P(e is chosen under fresh noise).

    Needs a router with noise (`noisy_top_k`); elsewhere load_E is 0 and so is the loss.
    Shazeer et al. (1701.06538) eq. 8-11.
    """
    return squared_cv(sums.load_E, variance)


def router_z_loss(sums: Sums) -> Float[Array, ""]:
    """mean over tokens of logsumexp(logits)^2. ST-MoE (2202.08906) eq. 5."""
    return _ratio(sums.z, sums.valid)


def max_violation(load_E: Shaped[Array, "E"]) -> Float[Array, ""]:
    """(max load - mean load) / mean load; 0 is balanced, E - 1 is collapse. (2408.15664)"""
    load_E = load_E.astype(jnp.float32)
    return _ratio(jnp.max(load_E) - jnp.mean(load_E), jnp.mean(load_E))


def routing_metrics(sums: Sums, traffic: Traffic) -> dict[str, Float[Array, ""]]:
    """The metrics of one layer, from statistics reduced over all tokens to be described.

    load_balance_loss: all choices, balanced = 1. max_violation, load_cv, dead_experts: of the
    wanted load, before drops. router_entropy: nats per token. largest_logit: max |logit|.
    experts_per_token: wanted / valid tokens. dropped_fraction: dropped / wanted.
    dropped_token_fraction: tokens that lost all experts / valid tokens. overflow_fraction:
    overflow / wanted. capacity_utilization: accepted / slots; without meaning where dropless
    (slots = 0), and left out by who reports it.
    """
    wanted = jnp.sum(sums.wanted_E)
    metrics = {
        "load_balance_loss": load_balance_loss(sums),
        "router_z_loss": router_z_loss(sums),
        "router_entropy": _ratio(sums.entropy, sums.valid),
        "largest_logit": sums.largest_logit.astype(jnp.float32),
        "experts_per_token": _ratio(wanted, sums.valid),
        "max_violation": max_violation(sums.wanted_E),
        "load_cv": jnp.sqrt(squared_cv(sums.wanted_E)),
        "dead_experts": jnp.sum(sums.wanted_E == 0).astype(jnp.float32),
        "dropped_fraction": _ratio(traffic.dropped, wanted),
        "dropped_token_fraction": _ratio(traffic.dropped_tokens, sums.valid),
        "overflow_fraction": _ratio(traffic.overflow, wanted),
        "capacity_utilization": _ratio(jnp.sum(traffic.accepted_E), traffic.slots),
    }
    return metrics
