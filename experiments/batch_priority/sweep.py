"""One model, evaluated at falling capacity under two orders of service."""

from __future__ import annotations

import functools

from experiments import capacity
from experiments.scales import pod, small, tiny

metric = functools.partial(capacity.name_of, "bits")

CARD = capacity.priority_card(
    title="Batch priority",
    arm="v_moe",
    overrides={
        "moe.router.kind": "v_moe",
        "moe.router.k": 1,
        "moe.capacity_factor": 1.5,
        "moe.losses.importance.coefficient": 0.005,
        "moe.losses.load.coefficient": 0.005,
    },
    scales={
        "tiny": tiny(4),
        "small": small(5),
        "pod": pod("configs/switch_base_like.py", "v5p:4x4x4", 1),
    },
    factors=(1.5, 1.0, 0.75, 0.5, 0.35, 0.25),
    metric="bits_per_byte",
    what="bits",
    heading="Bits per byte at falling capacity",
)
