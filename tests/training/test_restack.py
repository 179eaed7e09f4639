"""Arrays of layers in one form are read into the other, to the bit."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from moe_jax.config.errors import UserError
from moe_jax.data.tokenizer import ByteTokenizer
from moe_jax.models.layout import layout_of
from moe_jax.nn.depth import MixtureOfDepths
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.routing import LossFree
from moe_jax.training.build import build
from moe_jax.training.checkpoint import CheckpointConfig, Checkpoints, flatten
from moe_jax.training.optimizer import Adafactor, AdamW, Muon
from moe_jax.training.restack import stacks_of
from tests.drawn import some
from tests.training.experiments import experiment
from tests.training.steps import MIXTRAL, run

OPTIMIZERS = [AdamW(), Adafactor(), Muon()]


def shapes_of(layout):
    return {
        f"params.layers.{stack.name}.attention.wq": (stack.count, 3, 4) for stack in layout.stacks
    }


@pytest.mark.parametrize("depth", [MixtureOfDepths(), MixtureOfDepths(every=3, first=1)])
@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("layers", [1, 3, 4, 7, 12])
def test_names_and_lengths_say_which_layers_they_are(layers, first, every, depth):
    layout = layout_of(layers, MoEConfig(every=every, first=first), depth)
    for form in (layout, layout.unrolled()):
        found = stacks_of(shapes_of(form))
        assert found == form.layers_by_name
    assert [stack.layers for stack in layout.unrolled().stacks] == [(n,) for n in range(layers)]
    assert layout.unrolled().moe_layers == layout.moe_layers
    assert layout.unrolled().depth_layers == layout.depth_layers


@pytest.mark.parametrize("shapes", [{"params.layers.00.a": 3}, {"params.layers.00.a": []}, {}])
def test_shapes_that_say_nothing(shapes):
    assert stacks_of(shapes) == {}


def program(optimizer, unrolled):
    """Two dense layers, then sparse and dense ones in turn."""
    moe = MoEConfig(num_experts=4, expert_dim=8, every=2, first=2, router=LossFree(k=2))
    base = experiment(optimizer=optimizer, moe=moe)
    model = dataclasses.replace(base.model, num_layers=6, unrolled_layers=unrolled)
    given = dataclasses.replace(base, model=model, mesh=MeshConfig(data=1))
    return build(given, ByteTokenizer(), devices=jax.devices()[:1])


@pytest.mark.parametrize("optimizer", some(OPTIMIZERS, OPTIMIZERS[:1]))
def test_a_file_of_either_form_is_read_into_the_other(tmp_path, optimizer):
    """Every array, those of optimizers and of routers too; with a prologue and alternating
    layers."""
    looped, single = program(optimizer, 0), program(optimizer, 8)
    assert len(looped.layout.stacks) == 4 and len(single.layout.stacks) == 6
    state = jax.tree.map(_numbered, looped.init())
    saved = dict(data_index=0, config={}, fingerprint={})
    with Checkpoints(tmp_path / "a", CheckpointConfig()) as checkpoints:
        checkpoints.save(1, state, **saved)
        per_member = checkpoints.restore(single.abstract_state).state
    with Checkpoints(tmp_path / "b", CheckpointConfig()) as checkpoints:
        checkpoints.save(1, per_member, **saved)
        again = checkpoints.restore(looped.abstract_state).state
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))
    arrays, by_layer = flatten(state)[0], flatten(per_member)[0]
    places = [("00", 0), ("01", 0), ("02", 0), ("03", 0), ("02", 1), ("03", 1)]
    for layer, (stack, row) in enumerate(places):
        for rest in ("attention.wq", "mlp_norm.scale"):
            whole = arrays[f"params.layers.{stack}.{rest}"]
            np.testing.assert_array_equal(
                by_layer[f"params.layers.{layer:02d}.{rest}"][0], whole[row]
            )


def _numbered(leaf):
    """Every number another one, so that a wrong row is seen."""
    values = np.arange(leaf.size).reshape(leaf.shape) + leaf.size
    return jax.device_put(values.astype(leaf.dtype), leaf.sharding)


@pytest.mark.grid
def test_layers_are_drawn_and_compute_the_same():
    """In either form, but for rounding."""
    losses = [run(MIXTRAL, steps=2, unrolled_layers=most)[:, 0] for most in (0, 8)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    looped, single = (program(AdamW(), most).network for most in (0, 8))
    drawn, per_member = (network.init(jax.random.key(3)) for network in (looped, single))
    whole = drawn["layers"]["02"]["moe"]["experts"]["w_up"]
    for layer, row in (("02", 0), ("04", 1)):
        own = per_member["layers"][layer]["moe"]["experts"]["w_up"]
        np.testing.assert_allclose(own[0], whole[row], rtol=1e-5, atol=1e-6)


@pytest.mark.grid
def test_another_number_of_layers_is_told(tmp_path):
    base = experiment()
    few, many = (
        build(
            dataclasses.replace(
                base,
                model=dataclasses.replace(base.model, num_layers=n, unrolled_layers=most),
                mesh=MeshConfig(data=1),
            ),
            ByteTokenizer(),
            devices=jax.devices()[:1],
        )
        for n, most in ((2, 0), (3, 8))
    )
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, few.init(), data_index=0, config={}, fingerprint={})
        with pytest.raises(UserError, match="does not fit the model"):
            checkpoints.restore(many.abstract_state)
