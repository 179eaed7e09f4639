"""Memory grows with tokens x experts per token, not with tokens x experts."""

from __future__ import annotations

import jax
import pytest

from moe_jax.config.overrides import load_config
from moe_jax.data.tokenizer import IdTokenizer
from moe_jax.planning.compiled import lower_step
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment

SETTINGS = (
    "batch_size=4",
    "data.sequence_length=1024",
    "model.num_layers=1",
    "model.model_dim=256",
    "moe.router.k=4",
    "mesh.data=1",
)


def temporaries(E: int, *settings: str) -> int:
    """Bytes of the training step's temporary arrays, with E experts of 4096 / E columns."""
    own = (f"moe.num_experts={E}", f"moe.expert_dim={4096 // E}")
    pairs = tuple(text.split("=", 1) for text in (*SETTINGS, *settings, *own))
    experiment = load_config("configs/quickstart.py", pairs, Experiment)
    program = build(experiment, IdTokenizer(264), jax.devices()[:1])
    return lower_step(program).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("moe.capacity_factor=1.25", "moe.router.drop_order=batch_priority"),
        ("moe.router.kind=deepseek_v3",),
        ("moe.router.kind=remoe", "moe.router.k_max=8"),
    ],
    ids=" ".join,
)
def test_of_four_times_as_many_experts(settings: tuple[str, ...]):
    assert temporaries(256, *settings) < 1.2 * temporaries(64, *settings)
