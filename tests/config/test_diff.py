"""Differences between configs."""

from __future__ import annotations

import json

from moe_jax.config.diff import difference
from moe_jax.config.tree import to_json_dict
from tests.config.toy import Greedy, Layer, Lazy, Toy


def test_equal_configs_do_not_differ():
    stored = json.loads(json.dumps(to_json_dict(Toy())))
    assert difference(stored, to_json_dict(Toy())) == []


def test_each_changed_value_is_a_line_with_its_path():
    old = to_json_dict(Toy(layer=Layer(chooser=Greedy(k=2))))
    new = to_json_dict(Toy(steps=11, window=(1, 3), layer=Layer(chooser=Greedy(k=1))))
    assert difference(old, new) == [
        "steps: 10 -> 11",
        "window: [1, 2] -> [1, 3]",
        "layer.chooser.k: 2 -> 1",
    ]


def test_keys_that_only_one_has():
    old = to_json_dict(Layer(chooser=Greedy(noise=0.25)))
    new = to_json_dict(Layer(chooser=Lazy(causal=True)))
    assert difference(old, new, "layer") == [
        "layer.chooser.kind: 'greedy' -> 'lazy'",
        "layer.chooser.k: 2 -> (absent)",
        "layer.chooser.order: (absent) -> 'first'",
    ]


def test_what_counts_as_the_same():
    assert difference({"a": (1, 2), "b": 1}, {"a": [1, 2], "b": 1.0}) == []
    assert difference({"a": [1]}, {"a": [True]}) == ["a: [1] -> [True]"]
    assert difference({"a": 0}, {"a": False}) == ["a: 0 -> False"]
    assert difference({"a": {"b": 1}}, {"a": None}) == ["a: {'b': 1} -> None"]
