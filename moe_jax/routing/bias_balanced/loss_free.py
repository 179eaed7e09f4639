"""Loss-free balancing: top-k with a bias that follows the load."""

from __future__ import annotations

from dataclasses import dataclass

from moe_jax.routing.bias_balanced.base import BaseBiasedTopK


@dataclass(frozen=True, kw_only=True)
class LossFree(BaseBiasedTopK):
    """s = sigmoid(x W); the k largest of s + b with weights s; b_e <- b_e + bias_rate *
    sign(mean count - count_e) once a step, from the counts of the whole global batch.

    Wang, Gao, Zhao, Sun, Dai (2408.15664), algorithm 1; rate 0.001 for 100k steps and more: scale
    it up for short runs. `bias_update="proportional"` is its variant. Use it without a balance
    loss.
    """

    renormalize: bool = False
    bias_update: str = "sign"
