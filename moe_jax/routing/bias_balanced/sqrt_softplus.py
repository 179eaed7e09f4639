"""Scores sqrt(softplus(logit)), balanced by a bias."""

from __future__ import annotations

from dataclasses import dataclass

from moe_jax.routing.bias_balanced.base import BaseBiasedTopK


@dataclass(frozen=True, kw_only=True)
class SqrtSoftplus(BaseBiasedTopK):
    """s = sqrt(softplus(x W)); the k largest of s + b; weights scale * s / sum of the chosen s; b
    as in loss-free balancing.

    DeepSeek-V4's affinity: unlike a sigmoid it does not saturate for large logits.
    """

    score: str = "sqrt_softplus"
    scale: float = 1.5
    bias_update: str = "sign"
