"""A bias that follows the load against an auxiliary loss, with one and the same router."""

from __future__ import annotations

from typing import Any

from experiments.card import Card
from experiments.scales import DEEPSEEK_LAYOUT, pod, small, tiny
from moe_jax.training.experiment import Experiment


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    k = base.moe.router.k  # type: ignore[attr-defined]
    router = {"moe.router.kind": "loss_free", "moe.router.k": k}
    # 300 steps are few for a bias that moves by 0.001 a step: the rate is ten times the paper's,
    # and falls to 0 over the run.
    falling = f"moe.router.bias_rate = linear(0.01, 0, {base.steps})"
    return {
        "loss-free": {**router, "schedules": (falling,)},
        "loss-free, rate 0.001": {**router, "moe.router.bias_rate": 0.001},
        "aux loss 0.001": {
            **router,
            "moe.router.bias_update": "none",
            "moe.losses.load_balance.coefficient": 0.001,
        },
    }


CARD = Card(
    title="Loss-free balancing",
    arms=arms,
    first_seed=20,
    scales={
        "tiny": tiny(6),
        "small": small(5),
        "pod": pod("configs/deepseek_moe_16b.py", "v5e:16x16", 1, DEEPSEEK_LAYOUT),
    },
    shown=("moe/max_violation", "bits_per_byte"),
)
