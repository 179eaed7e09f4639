"""Config files and overrides."""

from __future__ import annotations

import json
import textwrap

import pytest

from moe_jax.config.checks import check
from moe_jax.config.errors import ConfigError, Problem, UserError
from moe_jax.config.overrides import apply_overrides, load_config, read_config_file
from moe_jax.config.tree import to_config_dict, to_json_dict
from tests.config.toy import Greedy, Layer, Lazy, Nested, Outside, Toy

BASE = """
from moe_jax.config.tree import to_config_dict, to_json_dict
from tests.config.toy import Toy

def get_config(arg=""):
    config = to_config_dict(Toy())
    config.layer.chooser.k = int(arg or 3)
    return config
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "base.py"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return tmp_path / name

    return write


def problems(config, overrides, **options) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(config, overrides, **options)
    return {problem.path: problem.rule for problem in caught.value.problems}


# Overrides


def test_texts_are_read_by_the_type_of_the_field():
    overrides = {
        "steps": "1_000",
        "rate": "1e-3",
        "name": "3",
        "note": "none",
        "window": "4,5",
        "pair": "(b, 2)",
        "mode": "slow",
        "layer.bias": "true",
        "layer.capacity": "2",
        "layer.chooser.k": "1",
    }
    assert apply_overrides(Toy(note="x"), overrides) == Toy(
        steps=1000,
        rate=1e-3,
        name="3",
        window=(4, 5),
        pair=("b", 2.0),
        mode="slow",
        layer=Layer(size=16, bias=True, capacity=2.0, chooser=Greedy(k=1)),
    )


def test_typed_values_are_taken_as_they_are_and_none_unsets():
    config = Toy(limit=30, layer=Layer(capacity=1.5))
    changed = apply_overrides(config, {"limit": None, "layer.capacity": "None", "window": [7]})
    assert changed == Toy(window=(7,), layer=Layer())
    assert config.limit == 30  # the given one is untouched


def test_the_last_of_several_values_counts():
    assert apply_overrides(Toy(), [("steps", "1"), ("steps", "2")]).steps == 2


def test_a_kind_comes_first_wherever_it_stands():
    overrides = [("layer.chooser.order", "last"), ("layer.chooser.kind", "lazy")]
    assert apply_overrides(Toy(), overrides).layer.chooser == Lazy(order="last")


def test_a_kind_within_a_kind():
    overrides = [
        ("layer.chooser.inner.noise", "0"),
        ("layer.chooser.inner.kind", "lazy"),
        ("layer.chooser.kind", "nested"),
    ]
    assert apply_overrides(Toy(), overrides).layer.chooser == Nested(inner=Lazy(noise=0.0))


def test_a_new_kind_starts_from_its_own_defaults_and_the_old_kind_keeps_its_values():
    config = Toy(layer=Layer(chooser=Greedy(noise=0.9)))
    assert apply_overrides(config, {"layer.chooser.kind": "lazy"}).layer.chooser == Lazy()
    assert apply_overrides(config, {"layer.chooser.kind": "greedy"}) == config


def test_a_kind_from_outside_the_package():
    overrides = {
        "layer.chooser.kind": "tests.config.toy:Outside",
        "layer.chooser.temperature": "0.5",
    }
    assert apply_overrides(Toy(), overrides).layer.chooser == Outside(temperature=0.5)


def test_all_problems_of_all_overrides_are_told_at_once():
    overrides = {
        "layer.chooser.kk": "1",
        "chooser.noise": "1",
        "nonsense": "1",
        "layer.chooser.nonsense": "1",
        "steps": "1e3",
        "steps.more": "1",
        "layer.k": "1",
        "chooser.size": "1",
        "layer": "3",
        "layer.chooser.kind": "gredy",
        "layer.kind": "big",
        "mode": "fats",
        "layer.size": "0",  # can be read, but breaks a rule
        "layer.bias": 1,
    }
    assert problems(Toy(), overrides) == {
        "layer.chooser.kk": "unknown key; did you mean config.layer.chooser.k?",
        "chooser.noise": "unknown key; did you mean config.layer.chooser.noise?",
        "nonsense": "unknown key; config has name, note, steps, rate, window, pair, schedules, "
        "mode, limit, layer",
        "layer.chooser.nonsense": "unknown key; did you mean config.layer.chooser.noise?",
        "steps": "must be an integer",
        "steps.more": "unknown key; did you mean config.steps?",
        "layer.k": "unknown key; did you mean config.layer.chooser.k?",
        "chooser.size": "unknown key; did you mean config.layer.size?",
        "layer": "is a group of settings; set one of them: size, chooser, capacity, bias",
        "layer.chooser.kind": "no kind 'gredy'; did you mean greedy? "
        "(your own class: my_module:MyClass)",
        "layer.kind": "unknown key; did you mean config.layer.chooser.kind?",
        "mode": "must be one of fast, slow; did you mean fast?",
        "layer.size": "must be at least 1",
        "layer.bias": "must be true or false",
    }


def test_a_bare_boolean_fits_only_a_boolean():
    assert apply_overrides(Toy(), [("layer.bias", True)]).layer.bias is True
    assert problems(Toy(), [("steps", True), ("name", True)]) == {
        "steps": "must be an integer",
        "name": "must be a text",
    }


def test_the_callers_check_is_asked_too():
    def always(config):
        return [*check(config), Problem("layer.size", config.layer.size, "does not fit the mesh")]

    assert problems(Toy(), {"stepz": 1}, check=always) == {
        "stepz": "unknown key; did you mean config.steps?",
        "layer.size": "does not fit the mesh",
    }


def test_a_config_dict_is_copied_and_its_references_follow():
    config = to_config_dict(Toy())
    config.steps = config.layer.get_ref("size") * 2
    assert apply_overrides(config, {"layer.size": "50"}, Toy).steps == 100
    assert config.layer.size == 16
    with pytest.raises(TypeError, match="give cls"):
        apply_overrides(config, {})


# Files


def test_file_argument_and_overrides(write):
    path = write(BASE)
    assert load_config(path, {}, Toy).layer.chooser.k == 3
    assert load_config(f"{path}:5", {}, Toy).layer.chooser.k == 5
    assert load_config(f"{path}:5", {"layer.chooser.k": "6"}, Toy).layer.chooser.k == 6


def test_an_edited_file_is_read_anew(write):
    assert load_config(write(BASE), {}, Toy).layer.chooser.k == 3
    assert load_config(write(BASE.replace("or 3", "or 4")), {}, Toy).layer.chooser.k == 4


def test_a_file_may_build_on_another(write):
    write(BASE)
    path = write(
        """
        from pathlib import Path
        from moe_jax.config.overrides import read_config_file

        def get_config(arg=""):
            config = read_config_file(Path(__file__).with_name("base.py"))
            config.layer.chooser.kind = "lazy"
            return config
        """,
        "twin.py",
    )
    assert load_config(path, {}, Toy).layer.chooser == Lazy()


def test_a_file_may_define_its_own_class(write):
    path = write(
        """
        from __future__ import annotations
        from dataclasses import dataclass
        from moe_jax.config.tree import to_config_dict
        from tests.config.toy import Layer, Toy

        @dataclass(frozen=True, kw_only=True)
        class Mine:
            size: int = 5
            causal: bool = True
            def choose(self) -> int:
                return self.size

        def get_config(arg=""):
            return to_config_dict(Toy(layer=Layer(chooser=Mine())))
        """
    )
    config = load_config(path, {"layer.chooser.size": "6"}, Toy)
    assert config.layer.chooser.choose() == 6


def test_problems_of_the_file_and_of_the_overrides_are_told_together(write):
    path = write(BASE.replace("    return config", "    config.layer.size = 0\n    return config"))
    with pytest.raises(ConfigError) as caught:
        load_config(path, {"step": "1"}, Toy)
    assert {problem.path for problem in caught.value.problems} == {"step", "layer.size"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_conf(): ...", "has no function get_config"),
        ("def get_config(arg=''): return {}", "gives a dict, not a ConfigDict"),
        (
            "def get_config(arg=''):\n    return 1 / 0",
            r"line 2 \(return 1 / 0\): ZeroDivisionError",
        ),
        ("import no_such_library", r"line 1 .*No module named 'no_such_library'"),
        ("x = (1,\n", "line 1 .*SyntaxError"),
        (
            BASE.replace("layer.chooser.k =", "layer.choser.k ="),
            r"line 7 .*Did you mean \"chooser\"",
        ),
        (
            BASE.replace("chooser.k =", "chooser.kk ="),
            r"line 7 .*unknown key 'kk'; did you mean k\?",
        ),
        (BASE.replace("int(arg or 3)", "'three'"), r"line 7 .*TypeError"),
        (BASE.replace(".k = int(arg or 3)", ".kind = 'lasy'"), r"line 7 .*did you mean lazy\?"),
        (BASE.replace("Toy()", "Toy(steps='x')"), r"(?s)line 6 .*config.steps = 'x': must be"),
    ],
)
def test_a_file_that_fails_says_where_and_why(write, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_config_file(write(text))
    assert "base.py" in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_argument_for_a_file_that_takes_none(write):
    path = write(BASE.replace('arg=""', "").replace("int(arg or 3)", "3"))
    assert read_config_file(path).layer.chooser.k == 3
    with pytest.raises(UserError, match="takes no argument, but :big is given"):
        read_config_file(f"{path}:big")


def test_a_missing_file_names_the_nearest(write, tmp_path, monkeypatch):
    write(BASE, "quickstart.py")
    write(BASE, "mixtral.py")
    with pytest.raises(UserError, match=r"did you mean .*/quickstart\.py\?"):
        read_config_file(tmp_path / "quikstart.py")
    with pytest.raises(UserError, match=r"did you mean .*/quickstart\.py\?"):
        read_config_file(f"{tmp_path}/quickstart:arg")
    with pytest.raises(UserError, match=r"holds mixtral\.py, quickstart\.py"):
        read_config_file(tmp_path / "zzz.py")
    with pytest.raises(UserError, match="no folder"):
        read_config_file(tmp_path / "nowhere" / "quickstart.py")
    with pytest.raises(UserError, match="is a folder"):
        read_config_file(tmp_path)
    (tmp_path / "configs").mkdir()
    write(BASE, "configs/olmoe.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"did you mean configs/olmoe\.py\?"):
        read_config_file("olmoe")


def test_the_config_of_a_run_is_a_config_file(write, tmp_path):
    """config.json, which a run writes, starts the same run again, with other values on top."""
    made = load_config(write(BASE), {"layer.chooser.k": 5}, Toy)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_json_dict(made)))
    assert load_config(file, {}, Toy) == made
    assert load_config(str(file), {"layer.chooser.k": "2"}, Toy).layer.chooser.k == 2
    with pytest.raises(UserError, match=r"no config file .*gone\.json"):
        load_config(tmp_path / "gone.json", {}, Toy)
    file.write_text("{")
    with pytest.raises(UserError, match="is torn or no JSON"):
        load_config(file, {}, Toy)
