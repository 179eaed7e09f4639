"""A sparse model, the dense one of its FLOPs and the dense one of its parameters."""

from __future__ import annotations

from typing import Any

from experiments.card import Card
from experiments.scales import OLMOE_LAYOUT, pod, small, tiny
from moe_jax.config.overrides import apply_overrides
from moe_jax.sweeps.matching import counts_of, width_for
from moe_jax.training.experiment import Experiment

BALANCE = {"moe.losses.load_balance.coefficient": 0.01}


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    dense = {"moe.every": 0}
    width = width_for(apply_overrides(base, dense), "parameters", counts_of(base).total)
    return {
        "sparse": BALANCE,
        "dense, iso-FLOP": {**dense, "model.mlp_dim": counts_of(base).iso_flop_dense_dim},
        "dense, iso-parameter": {**dense, "model.mlp_dim": width},
    }


CARD = Card(
    title="Sparsity pays",
    arms=arms,
    first_seed=20,
    scales={
        "tiny": tiny(8),
        "small": small(5),
        "pod": pod("configs/olmoe_1b_7b.py", "v5p:4x4x8", 1, OLMOE_LAYOUT),
    },
    shown=("bits_per_byte", "parameters", "flops_per_token"),
)
