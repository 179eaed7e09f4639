"""Who is served where scores are equal: a rule decides, not rounding, which differs between meshes
and batch sizes."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from moe_jax.config.overrides import load_config
from moe_jax.data.tokenizer import IdTokenizer
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment
from tests.drawn import some

S, B, V = 128, 16, 264
SETTINGS = ("evaluation.capacity_factor=0.5", f"data.sequence_length={S}", "model.num_layers=2")


def kept(devices: int, rows: int, *settings: str) -> np.ndarray:
    """Which assignments an evaluation keeps, (L, B, S, K), with so many rows a batch.

    Each row repeats one id: attention gives all its tokens the same value, up to rounding.
    """
    overrides = (*SETTINGS, *settings, f"mesh.data={devices}", f"evaluation.batch_size={rows}")
    pairs = tuple(text.split("=", 1) for text in overrides)
    experiment = load_config("configs/quickstart.py", pairs, Experiment)
    program = build(experiment, IdTokenizer(V), jax.devices()[:devices])
    state = program.init()
    ids = np.random.default_rng(0).integers(0, V, (B, 1)).astype(np.int32)
    found = []
    for first in range(0, B, rows):
        tokens = np.tile(ids[first : first + rows], (1, S + 1))
        raw = program.put({"tokens": tokens, "segments": np.ones_like(tokens)}, first_row=first)
        seen = program.observe_step(state.params, state.router_state, raw, program.scalars(0))
        found.append(jax.device_get(seen.routes.kept_BSK))
    return np.concatenate(found, axis=1)


@pytest.mark.grid
@pytest.mark.parametrize(
    "settings",
    some(
        [
            ("moe.router.drop_order=batch_priority",),
            ("moe.router.drop_order=choice_major",),
            ("moe.router.drop_order=token_major",),
            ("moe.router.kind=v_moe", "moe.router.drop_order=batch_priority"),
            ("moe.router.kind=expert_choice", "evaluation.capacity_factor=none"),
        ],
        [("moe.router.drop_order=batch_priority",)],
    ),
    ids=" ".join,
)
def test_the_same_tokens_are_dropped_on_every_mesh_and_batch(settings: tuple[str, ...]):
    whole = kept(1, 16, *settings)
    assert 0 < whole.mean() < 1
    np.testing.assert_array_equal(kept(1, 4, *settings), whole)
    np.testing.assert_array_equal(kept(8, 16, *settings), whole)
