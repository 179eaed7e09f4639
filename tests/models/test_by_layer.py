"""One name a layer, whatever the stacking."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from moe_jax.data.tokenizer import ByteTokenizer
from moe_jax.models.by_layer import layer_names, stack, unstack
from moe_jax.models.layout import layout_of
from moe_jax.nn.moe_layer import MoEConfig
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.training.build import build
from tests.training.experiments import experiment


def program(unrolled):
    """Two dense layers, then sparse and dense ones in turn."""
    moe = MoEConfig(num_experts=4, expert_dim=8, every=2, first=2)
    base = experiment(moe=moe)
    model = dataclasses.replace(base.model, num_layers=6, unrolled_layers=unrolled)
    given = dataclasses.replace(base, model=model, mesh=MeshConfig(data=1))
    return build(given, ByteTokenizer(), devices=jax.devices()[:1])


def test_names_and_shapes_of_layers_do_not_depend_on_how_they_are_run():
    looped, single = program(0), program(8)
    assert len(looped.layout.stacks) == 4 and len(single.layout.stacks) == 6
    found = [unstack(p.network.init(jax.random.key(0)), p.layout) for p in (looped, single)]
    shapes = [{name: array.shape for name, array in one.items()} for one in found]
    assert shapes[0] == shapes[1]
    D = looped.experiment.model.model_dim
    assert shapes[0]["layers/04/moe/experts/w_up"] == (4, D, 8)
    assert "layers/03/mlp/w_up" in shapes[0] and "layers/03/moe/experts/w_up" not in shapes[0]
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("most", [0, 8])
def test_there_and_back(most):
    model = program(most)
    drawn = model.network.init(jax.random.key(0))
    again = stack(unstack(drawn, model.layout), model.layout, drawn)
    assert jax.tree.structure(again) == jax.tree.structure(drawn)
    jax.tree.map(np.testing.assert_array_equal, again, drawn)


def test_from_one_form_into_the_other():
    looped, single = program(0), program(8)
    arrays = unstack(looped.network.init(jax.random.key(0)), looped.layout)
    numbered = {
        name: np.full(array.shape, i, np.int16) for i, (name, array) in enumerate(arrays.items())
    }
    for model in (looped, single):
        tree = stack(numbered, model.layout, model.network.abstract)
        for name, array in unstack(tree, model.layout).items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, numbered[name])


def test_what_does_not_belong_is_named():
    layout = layout_of(2, MoEConfig())
    like = {"layers": {"00": {"w": np.zeros((2, 3))}}, "head": np.zeros(4)}
    arrays = {"layers/00/w": np.zeros(3), "layers/02/w": np.zeros(3), "head": np.zeros(5)}
    with pytest.raises(ValueError) as raised:
        stack(arrays, layout, like)
    for part in (
        "layers/01/w is missing",
        "layers/02/w belongs to nothing",
        "head is (5,), must be (4,)",
    ):
        assert part in str(raised.value)


def test_names_of_what_has_no_layers():
    stacks = {"00": (0, 2), "01": (1, 3)}
    assert layer_names("layers/01/a/b", stacks) == ("layers/01/a/b", "layers/03/a/b")
    assert layer_names("opt_state.0.mu.layers.00.a", stacks)[1] == "opt_state.0.mu.layers.02.a"
    assert layer_names("router_state/00/bias", stacks)[1] == "router_state/02/bias"
    for name in ("embedding", "layers/07/a", "mylayers/01/a", "layers/01"):
        assert layer_names(name, stacks) == ()
