"""A trace of drawn routes."""

from __future__ import annotations

import numpy as np

from moe_jax.analysis.trace import Trace


def random_trace(seed: int = 0, *, step: int = 5, L=2, N=3, S=40, K=2, E=6) -> Trace:
    """Distinct experts a token, some dropped, some unused, a padded end, 5 kinds of tokens."""
    rng = np.random.default_rng(seed)
    expert = np.argsort(rng.random((L, N, S, E)), axis=-1)[..., :K].astype(np.int32)
    expert[rng.random(expert.shape) < 0.1] = E + 1
    segment = np.ones((N, S), np.int32)
    segment[-1, -7:] = 0
    return Trace(
        step=step,
        num_experts=E,
        unused=E + 1,
        capacity_factor=1.0,
        layers_L=np.arange(L, dtype=np.int32),
        token_NS=np.random.default_rng(7).integers(0, 5, (N, S)).astype(np.int32),
        segment_NS=segment,
        expert_LNSK=expert,
        weight_LNSK=rng.random((L, N, S, K)).astype(np.float32),
        kept_LNSK=rng.random((L, N, S, K)) < 0.8,
        nats_NS=np.zeros((N, S), np.float32),
        domain_N=np.zeros(N, np.int32),
        domains=("all",),
    )
