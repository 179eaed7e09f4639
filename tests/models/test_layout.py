"""How layers are cut into a prologue and a repeated pattern, over all small combinations."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.models.layout import joined, layout_of
from moe_jax.nn.moe_layer import MoEConfig

COMBINATIONS = [
    (layers, every, first)
    for layers, every, first in itertools.product(range(1, 10), range(5), range(7))
]


def test_every_layer_is_there_once_and_of_its_kind():
    for layers, every, first in COMBINATIONS:
        layout = layout_of(layers, MoEConfig(every=every, first=first))
        message = (layers, every, first)
        numbers = [layer for stack in layout.stacks for layer in stack.layers]
        assert sorted(numbers) == list(range(layers)), message
        sparse = tuple(range(first, layers, every)) if every else ()
        assert layout.moe_layers == sparse, message
        for stack in layout.stacks:
            assert {layer in sparse for layer in stack.layers} == {stack.moe}, message
        assert len({stack.name for stack in layout.stacks}) == len(layout.stacks)


def test_layers_run_in_their_order():
    """Prologue first; then, repeat by repeat, through the pattern."""
    for layers, every, first in COMBINATIONS:
        layout = layout_of(layers, MoEConfig(every=every, first=first))
        order = [stack.first for stack in layout.prologue]
        repeats = {stack.count for stack in layout.pattern} or {0}
        assert len(repeats) == 1
        for i in range(repeats.pop()):
            order += [stack.layers[i] for stack in layout.pattern]
        assert order == list(range(layers)), (layers, every, first)


def test_the_prologue_is_short():
    """What cannot be scanned costs compile time: a remainder and the dense layers before."""
    for layers, every, first in COMBINATIONS:
        layout = layout_of(layers, MoEConfig(every=every, first=first))
        if every == 0:
            assert layout.prologue == ()
        elif first < layers:
            assert len(layout.prologue) <= max(first - every + 1, 0) + every - 1


@pytest.mark.parametrize(("layers", "every", "first"), [(4, 1, 0), (8, 3, 1), (7, 2, 3), (9, 1, 2)])
def test_reports_come_in_layer_order_and_back(layers, every, first):
    layout = layout_of(layers, MoEConfig(every=every, first=first))
    numbers = jnp.asarray(layout.moe_layers, jnp.int32)
    tree = {"number": numbers, "square": jnp.stack([numbers, numbers**2], 1)}
    stacks = layout.by_stack(tree)
    for stack in layout.moe_stacks:
        np.testing.assert_array_equal(stacks[stack.name]["number"], stack.layers)
    back = layout.in_layer_order(stacks)
    np.testing.assert_array_equal(back["number"], layout.moe_layers)
    np.testing.assert_array_equal(back["square"], tree["square"])


@pytest.mark.parametrize(("first", "sparse"), [(1, (1, 4)), (0, (0, 2, 3, 5)), (2, (2, 5))])
def test_parts_count_their_layers_by_themselves(first, sparse):
    """Two parts of three layers, every second one sparse, numbered through."""
    moe = MoEConfig(every=2, first=first)
    layout = joined(layout_of(3, moe, name="a"), layout_of(3, moe, behind=3, causal=True, name="b"))
    assert layout.moe_layers == sparse
    assert layout.part_of_moe_layers == tuple(int(layer >= 3) for layer in sparse)
    assert layout.unrolled().moe_layers == sparse
    names = [part.name for part in layout.unrolled().parts]
    assert names == ["a", "b"] == [part.name for part in layout.parts]
    for layer in range(6):
        assert layout.stack_of(layer).causal == (layer >= 3)
        assert layout.stack_of(layer).moe == (layer in sparse)
