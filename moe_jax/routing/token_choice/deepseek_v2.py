"""DeepSeek-V2 routing: softmax scores, experts of few devices only."""

from __future__ import annotations

from dataclasses import dataclass

from moe_jax.routing.bias_balanced.base import BaseBiasedTopK


@dataclass(frozen=True, kw_only=True)
class DeepSeekV2(BaseBiasedTopK):
    """p = softmax(x W); the k largest of p on the `kept_groups` devices with the best expert;
    weights scale * p, not renormalised.

    DeepSeek-AI (2405.04434) section 2.2.2: device-limited routing, k=6 of 160, expert_groups=8 and
    kept_groups=3, scale 16, with balance losses per row, per device and of communication. Here
    groups are off until they are set, since they must fit the number of experts.
    """

    score: str = "softmax"
    renormalize: bool = False
    scale: float = 16.0
    group_score: str = "max"
