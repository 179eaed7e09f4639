"""Every config file that is shipped builds, is valid and survives every way of writing it down."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from moe_jax.config.checks import check
from moe_jax.config.errors import ConfigError
from moe_jax.config.overrides import apply_overrides, load_config, read_config_file
from moe_jax.config.schedules import schedulable_values
from moe_jax.config.tree import (
    from_config_dict,
    from_json_dict,
    leaves,
    to_config_dict,
    to_json_dict,
)
from moe_jax.training.experiment import Experiment

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


def test_the_default_experiment_is_valid_and_has_scalars():
    assert check(Experiment()) == []
    assert "moe.losses.load_balance.coefficient" in schedulable_values(Experiment())


def test_there_are_configs():
    assert "quickstart" in {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid_and_round_trips(path):
    config_dict = read_config_file(path)
    assert isinstance(config_dict, ConfigDict)
    assert config_dict.is_locked
    experiment = load_config(path, {}, Experiment)  # runs all checks
    assert from_config_dict(to_config_dict(experiment), Experiment) == experiment
    stored = json.loads(json.dumps(to_json_dict(experiment)))
    assert from_json_dict(stored, Experiment) == experiment


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_value_of_a_shipped_config_can_be_set_on_the_command_line(path):
    experiment = load_config(path, {}, Experiment)
    texts = {}
    for at, _, value in leaves(experiment):
        texts[at] = ", ".join(map(repr, value)) if isinstance(value, tuple) else str(value)
    assert apply_overrides(experiment, texts) == experiment


def test_a_router_is_changed_with_its_settings_in_any_order():
    overrides = {
        "moe.router.jitter": "0.5",
        "moe.router.kind": "switch",
        "schedules": "moe.router.jitter = linear(0.5, 0, 10), "
        "moe.losses.load_balance.coefficient = constant(0.01)",
    }
    experiment = apply_overrides(Experiment(), overrides)
    assert type(experiment.moe.router).__name__ == "Switch"
    assert experiment.moe.router.jitter == 0.5
    assert len(experiment.schedules) == 2


def test_a_wrong_experiment_is_told_in_full():
    overrides = {
        "moe.num_expert": "16",
        "moe.router.k": "0",
        "moe.router.jiter": "0.1",
        "model.num_layers": "four",
        "batch_size": "0",
        "schedules": "moe.router.jiter = constant(0)",
    }
    with pytest.raises(ConfigError) as caught:
        apply_overrides(Experiment(), overrides)
    assert {problem.path for problem in caught.value.problems} == set(overrides)
