"""Quantile balancing: the bias that would have balanced the last batch."""

from __future__ import annotations

from dataclasses import dataclass

from moe_jax.routing.bias_balanced.base import BaseBiasedTopK


@dataclass(frozen=True, kw_only=True)
class QuantileBalancing(BaseBiasedTopK):
    """s = sigmoid(x W); the k largest of s + b with weights s / sum of the chosen s; after each
    step b_e = -(quantile 1 - k/E over tokens of s_e - cutoff), minus its mean over experts, where
    a token's cutoff is its (k+1)-th largest s + b.

    No rate and no loss. Su, "MoE travelogue" 6 (kexue.fm, 2026); the histogram over the global
    batch is the estimator of Kimi K3. Its counts are soft (`balancing_bias.count_below`), so the
    bias is continuous in the scores. The bias of a step comes from the batch before it, so routing
    stays causal.
    """

    bias_update: str = "quantile"
