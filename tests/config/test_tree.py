"""Dataclass <-> ConfigDict <-> JSON."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import sys
from dataclasses import dataclass

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from moe_jax.config.errors import ConfigError, UserError
from moe_jax.config.fields import schedulable
from moe_jax.config.overrides import apply_overrides
from moe_jax.config.tree import (
    from_config_dict,
    from_json_dict,
    settings,
    to_config_dict,
    to_json_dict,
)
from tests.config.toy import Greedy, Layer, Lazy, Nested, Outside, Toy

VARIANTS = [
    Toy(),
    Toy(note="x", limit=99, window=(), layer=Layer(chooser=Lazy(order="last"), capacity=1.5)),
    Toy(layer=Layer(chooser=Nested(inner=Lazy()))),
    Toy(layer=Layer(chooser=Outside(temperature=0.1))),
    Toy(rate=0.1 + 0.2, pair=("b", 1e-300)),
]


@pytest.mark.parametrize("config", VARIANTS)
def test_round_trips_are_exact(config):
    assert from_config_dict(to_config_dict(config), Toy) == config
    text = json.dumps(to_json_dict(config))
    assert from_json_dict(json.loads(text), Toy) == config


def test_the_config_dict_is_locked_and_type_safe_at_every_level():
    config = to_config_dict(Toy())
    assert isinstance(config, ConfigDict)
    for node in (config, config.layer, config.layer.chooser):
        assert node.is_locked
        assert node.is_type_safe
        with pytest.raises(AttributeError):
            node.nothing = 1
    with pytest.raises(TypeError):
        config.layer.size = "four"
    with pytest.raises(TypeError):
        config.layer.chooser = Lazy()


def test_kind_is_the_first_key_and_tuples_stay_tuples():
    config = to_config_dict(Toy())
    assert config.layer.chooser.keys() == ["kind", "k", "noise", "causal"]
    assert config.layer.chooser.kind == "greedy"
    assert config.window == (1, 2)
    assert to_json_dict(Toy())["window"] == [1, 2]
    assert next(iter(to_json_dict(Toy())["layer"]["chooser"])) == "kind"


def test_an_optional_value_can_be_set_and_unset_and_keeps_its_type():
    config = to_config_dict(Toy())
    for value in (1.5, None, 2.0, None):
        config.layer.capacity = value
        assert from_config_dict(config, Toy).layer.capacity == value
    config.layer.capacity = 3
    assert type(config.layer.capacity) is float
    config.layer.capacity = None
    with pytest.raises(TypeError):
        config.layer.capacity = "much"


@dataclass(frozen=True, kw_only=True)
class Files:
    path: str | tuple[str, ...] = "a"
    other: str | tuple[str, ...] | None = None


def test_one_text_or_several():
    config = to_config_dict(Files())
    for value in (("a", "b"), "c", ["d"], ()):
        config.path = config.other = value
        read = from_config_dict(config, Files)
        assert read.path == read.other == (tuple(value) if isinstance(value, list) else value)
        assert from_json_dict(json.loads(json.dumps(to_json_dict(read))), Files) == read
    config.other = None
    assert from_config_dict(config, Files).other is None
    with pytest.raises(ConfigError, match=r"config\.path = 3: must be a text or a tuple of texts$"):
        config.path = 3
        from_config_dict(config, Files)
    chosen = apply_overrides(Files(), {"path": "a, b", "other": "'a, b'"})
    assert chosen == Files(path=("a", "b"), other="a, b")
    assert apply_overrides(chosen, {"path": "c", "other": "none"}) == Files(path="c")


def test_setting_a_kind_takes_the_defaults_of_that_kind():
    config = to_config_dict(Toy(layer=Layer(chooser=Greedy(noise=0.9))))
    config.layer.chooser.kind = "lazy"
    config.layer.chooser.order = "last"
    assert from_config_dict(config, Toy).layer.chooser == Lazy(order="last")
    with pytest.raises(AttributeError):
        config.layer.chooser.k = 3
    config.layer.chooser.kind = "nested"
    assert config.layer.chooser.inner.is_locked
    config.layer.chooser.inner.kind = "lazy"
    assert from_config_dict(config, Toy).layer.chooser == Nested(inner=Lazy())


def test_setting_the_same_kind_changes_nothing():
    config = to_config_dict(Toy(layer=Layer(chooser=Greedy(k=5))))
    config.layer.chooser.kind = "greedy"
    assert from_config_dict(config, Toy).layer.chooser == Greedy(k=5)


def test_update_takes_the_kind_first():
    config = to_config_dict(Toy())
    config.layer.chooser.update({"order": "last", "kind": "lazy"})
    assert from_config_dict(config, Toy).layer.chooser == Lazy(order="last")


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda config: pickle.loads(pickle.dumps(config)),
        lambda config: config.copy_and_resolve_references(),
        ConfigDict,
    ],
)
def test_copies_keep_their_kinds(duplicate):
    original = to_config_dict(Toy(limit=20))
    config = duplicate(original)
    assert from_config_dict(config, Toy) == Toy(limit=20)
    config.layer.chooser.kind = "lazy"
    assert from_config_dict(config, Toy).layer.chooser == Lazy()


def test_a_frozen_config_dict_can_be_read():
    assert from_config_dict(FrozenConfigDict(to_config_dict(Toy(steps=3))), Toy).steps == 3


def test_references_between_fields_follow():
    config = to_config_dict(Toy())
    config.steps = config.layer.get_ref("size") * 2
    config.layer.size = 50
    assert from_config_dict(config, Toy).steps == 100


def test_all_problems_are_told_at_once_with_path_value_and_rule():
    tree = to_json_dict(Toy())
    tree["step"] = 5
    tree["rate"] = "fast"
    tree["layer"]["size"] = True
    tree["layer"]["chooser"]["noise"] = None
    tree["layer"]["chooser"]["kk"] = 1
    tree["window"] = [1, 2.5]
    with pytest.raises(ConfigError) as caught:
        from_json_dict(tree, Toy)
    lines = str(caught.value).splitlines()
    assert len(caught.value.problems) == 6
    expected = [
        "config.step = 5: unknown key; did you mean steps?",
        "config.rate = 'fast': must be a number",
        "config.layer.size = True: must be an integer",
        "config.layer.chooser.noise = None: must be a number",
        "config.layer.chooser.kk = 1: unknown key; did you mean k?",
        "config.window = [1, 2.5]: must be a tuple of integers (an element must be an integer)",
    ]
    assert {line.strip() for line in lines[1:]} == set(expected)


def test_true_is_no_int_although_a_config_dict_takes_it():
    config = to_config_dict(Toy())
    config.steps = True
    config.layer.chooser.k = None  # nor is None
    with pytest.raises(ConfigError) as caught:
        from_config_dict(config, Toy)
    assert [problem.path for problem in caught.value.problems] == ["steps", "layer.chooser.k"]


def test_a_group_and_a_value_are_not_mistaken_for_each_other():
    with pytest.raises(ConfigError, match="group of settings: size, chooser"):
        from_json_dict({"layer": 3}, Toy)
    with pytest.raises(ConfigError, match="must be an integer"):
        from_json_dict({"steps": {"a": 1}}, Toy)


def test_missing_keys_keep_their_defaults():
    # The default of the field (size=16), not that of its class (size=4).
    assert from_json_dict({"layer": {"bias": True}}, Toy).layer == Layer(size=16, bias=True)
    nested = {"layer": {"chooser": {"kind": "nested", "inner": {"noise": 0.0}}}}
    assert from_json_dict(nested, Toy).layer.chooser == Nested(inner=Greedy(k=7, noise=0.0))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gredy", "did you mean greedy"),
        ("zzz", "there are: greedy, lazy, nested"),
        (3, "must be a text"),
        ("no.such.module:Chooser", "no module 'no.such.module'"),
        ("tests.config.toy:Outsid", "did you mean Outside"),
        ("tests.config.toy:TABLE", "is not a dataclass"),
        ("tests.config.toy:Plain", "is not a dataclass"),
        ("tests.config.toy:NotFrozen", "must be frozen"),
        ("tests.config.toy:NeedsSize", "has none for size"),
        ("tests.config.toy:NoChooser", "is no Chooser: it has no causal, choose"),
    ],
)
def test_a_wrong_kind_is_refused_with_the_reason(kind, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_json_dict({"layer": {"chooser": {"kind": kind}}, "steps": "x"}, Toy, own=True)
    assert [problem.path for problem in caught.value.problems] == ["layer.chooser.kind", "steps"]
    config = to_config_dict(Toy())
    with pytest.raises(UserError, match=message):
        config.layer.chooser.kind = kind
    assert from_config_dict(config, Toy) == Toy()  # a refused kind leaves everything as it was


def test_a_module_that_fails_to_import_says_why(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_broken_router.py").write_text("import no_such_library\n")
    (tmp_path / "my_dividing_router.py").write_text("1 / 0\n")
    for module, message in [
        ("my_broken_router", "No module named 'no_such_library'"),
        ("my_dividing_router", "ZeroDivisionError"),
    ]:
        with pytest.raises(ConfigError, match=message):
            from_json_dict({"layer": {"chooser": {"kind": f"{module}:Router"}}}, Toy, own=True)
        sys.modules.pop(module, None)


def test_a_config_with_wrong_types_does_not_become_a_config_dict():
    config = Toy(steps="ten", layer=Layer(size=2.5, chooser=Greedy))
    with pytest.raises(ConfigError) as caught:
        to_config_dict(config)
    message = {problem.path: problem.rule for problem in caught.value.problems}
    assert set(message) == {"steps", "layer.size", "layer.chooser"}
    assert message["layer.chooser"] == "must be a dataclass, such as Greedy()"


def test_an_int_in_a_float_field_is_stored_as_a_float():
    config = to_config_dict(Toy(rate=1))
    config.rate = 0.5
    assert from_config_dict(config, Toy).rate == 0.5


@dataclass(frozen=True)
class HasList:
    values: list[int] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class HasKind:
    kind: str = "a"


@dataclass(frozen=True)
class HasSchedulableInt:
    value: int = schedulable(1)


@dataclass(frozen=True)
class HasNoDefault:
    value: int


@pytest.mark.parametrize("cls", [HasList, HasKind, HasSchedulableInt, HasNoDefault])
def test_a_class_that_cannot_be_a_config_is_refused_when_written(cls):
    with pytest.raises(TypeError, match=cls.__name__):
        settings(cls)
