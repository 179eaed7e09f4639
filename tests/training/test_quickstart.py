"""The quickstart itself, on one device and on a mesh."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from moe_jax.config.overrides import load_config
from moe_jax.data.tokenizer import ByteTokenizer
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment

CONFIG = str(Path(__file__).parents[2] / "configs" / "quickstart.py")


def losses(mesh, devices, steps=3):
    experiment = dataclasses.replace(load_config(CONFIG, (), Experiment), mesh=mesh)
    program = build(experiment, ByteTokenizer(), devices=devices)
    state, found = program.init(), []
    shape = (experiment.batch_size, experiment.data.sequence_length + 1)
    for step in range(steps):
        # Text has a skewed distribution, and so have these: the experts' loads are uneven.
        tokens = np.random.default_rng(step).geometric(0.03, shape).clip(0, 255).astype(np.int32)
        raw = {"tokens": tokens, "segments": np.ones(shape, np.int32)}
        state, result = program.train_step(state, program.put(raw), program.scalars(step))
        assert int(np.sum(result.sums.traffic.overflow)) == 0
        found.append((float(result.loss), float(result.grad_norm)))
    return found


@pytest.mark.grid  # `check` compares the quickstart's config in many variants in tests/checking
def test_same_losses_on_one_device_and_on_2x4():
    alone = losses(MeshConfig(), jax.devices()[:1])
    np.testing.assert_allclose(
        losses(MeshConfig(data=2, expert=4), jax.devices()), alone, rtol=1e-5
    )
