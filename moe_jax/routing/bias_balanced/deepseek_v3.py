"""DeepSeek-V3 routing: sigmoid scores, limited to groups, balanced by a bias."""

from __future__ import annotations

from dataclasses import dataclass

from moe_jax.routing.bias_balanced.base import BaseBiasedTopK


@dataclass(frozen=True, kw_only=True)
class DeepSeekV3(BaseBiasedTopK):
    """s = sigmoid(x W); the k largest of s + b in the best groups; weights scale * s / sum of the
    chosen s; b_e moves by bias_rate towards balance, once a step.

    DeepSeek-AI (2412.19437) section 2.1.2: k=8 of 256, expert_groups=8, kept_groups=4, group_score
    "top2_sum", scale 2.5, rate 0.001, and a row-wise balance loss of coefficient 1e-4. Here groups
    are off until they are set.
    """

    scale: float = 2.5
    bias_update: str = "sign"
