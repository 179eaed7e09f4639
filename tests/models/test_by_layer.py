"""One name a layer, whatever the stacking."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
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


def numbered(tree):
    """Every number another one."""
    starts = itertools.count(0, 100_000)
    return jax.tree.map(
        lambda leaf: next(starts) + np.arange(leaf.size, dtype=np.int64).reshape(leaf.shape), tree
    )


def test_names_and_shapes_of_layers_do_not_depend_on_how_they_are_run():
    looped, single = program(0), program(8)
    assert len(looped.layout.stacks) == 4 and len(single.layout.stacks) == 6
    arrays = unstack(numbered(looped.network.abstract), looped.layout)
    others = unstack(numbered(single.network.abstract), single.layout)
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes == {name: array.shape for name, array in others.items()}
    assert shapes["layers/04/moe/experts/w_up"] == (4, looped.experiment.model.model_dim, 8)
    assert "layers/03/mlp/w_up" in shapes and "layers/03/moe/experts/w_up" not in shapes


def test_rows_of_a_stack_are_its_layers():
    looped = program(0)
    tree = numbered(looped.network.abstract)
    arrays = unstack(tree, looped.layout)
    places = [("00", 0), ("01", 0), ("02", 0), ("03", 0), ("02", 1), ("03", 1)]
    for layer, (name, row) in enumerate(places):
        own = tree["layers"][name]["attention"]["wq"][row]
        np.testing.assert_array_equal(arrays[f"layers/{layer:02d}/attention/wq"], own)
    np.testing.assert_array_equal(arrays["embedding"], tree["embedding"])


def test_there_and_back_and_into_the_other_form():
    looped, single = program(0), program(8)
    arrays = {
        name: array.astype(np.float32)
        for name, array in unstack(numbered(looped.network.abstract), looped.layout).items()
    }
    for model in (looped, single):
        tree = stack(arrays, model.layout, model.network.abstract)
        assert jax.tree.structure(tree) == jax.tree.structure(model.network.abstract)
        again = unstack(tree, model.layout)
        assert again.keys() == arrays.keys()
        for name, array in again.items():
            assert array.dtype == jnp.float32
            np.testing.assert_array_equal(array, arrays[name])


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
