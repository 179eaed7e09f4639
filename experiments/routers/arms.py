"""Every router with what its paper trains it with: the arms of the table in docs/routers.md.

All have the quickstart's size (8 experts, k = 2 where a router has a k), are dropless unless their
paper has a capacity, and start from the same seeds on the same data. Coefficients of balance losses
are the papers'; rates of biases are scaled up, because 200 steps are few.
"""

from __future__ import annotations

from typing import Any

Overrides = dict[str, Any]

BALANCE: Overrides = {"moe.losses.load_balance.coefficient": 0.01}
CAPACITY: Overrides = {"moe.capacity_factor": 1.25, "evaluation.capacity_factor": 1.25}
RATE: Overrides = {"moe.router.bias_rate": 0.01}
SOFT: Overrides = {"moe.layout": "slots_einsum"}


def of(kind: str, *parts: Overrides, **options: Any) -> Overrides:
    """The overrides of a router: parts, then fields of the router."""
    merged: Overrides = {"moe.router.kind": kind}
    for part in parts:
        merged |= part
    return merged | {f"moe.router.{name}": value for name, value in options.items()}


def losses(**coefficients: float) -> Overrides:
    return {f"moe.losses.{name}.coefficient": value for name, value in coefficients.items()}


ARMS: dict[str, Overrides] = {
    "switch": of("switch", BALANCE, CAPACITY),
    "gshard": of("gshard", BALANCE, CAPACITY),
    "mixtral": of("mixtral", BALANCE),
    "mixtral, no loss": of("mixtral"),
    "top_k": of("top_k", BALANCE),
    "noisy_top_k": of("noisy_top_k", losses(importance=0.1, load=0.1), k=2),
    "v_moe": of("v_moe", losses(importance=0.005, load=0.005), CAPACITY),
    "v_moe, batch priority": of(
        "v_moe", losses(importance=0.005, load=0.005), CAPACITY, drop_order="batch_priority"
    ),
    "deepseek_v2": of("deepseek_v2", BALANCE),
    "deepseek_v3": of("deepseek_v3", RATE, losses(load_balance=1e-4)),
    "loss_free": of("loss_free", RATE),
    "quantile_balancing": of("quantile_balancing"),
    "sqrt_softplus": of("sqrt_softplus", RATE),
    "cosine": of("cosine", BALANCE),
    "dense_mixture": of("dense_mixture"),
    "base": of("base"),
    "sinkhorn": of("sinkhorn"),
    "expert_choice": of("expert_choice"),
    "expert_threshold": of("expert_threshold"),
    "soft_moe": of("soft_moe", SOFT),
    "remoe": of("remoe"),
    "top_p": of("top_p", BALANCE),
    "threshold": of("threshold", BALANCE),
    "moe_plus_plus": of("moe_plus_plus"),
    "hash": of("hash"),
    "random": of("random"),
    "uniform": of("uniform"),
    "round_robin": of("round_robin"),
}
