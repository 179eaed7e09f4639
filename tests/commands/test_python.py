"""`moe_jax.train` and what it gives, from Python."""

from __future__ import annotations

import pytest

import moe_jax
from moe_jax.config.errors import UserError
from moe_jax.config.overrides import load_config
from moe_jax.training.experiment import Experiment
from tests.commands.runs import results


@pytest.mark.lab
def test_it_trains_as_the_command_does(tiny, trained, tmp_path):
    """Every number bit for bit; a second call goes on, and other settings are refused."""
    experiment = load_config(tiny, (), Experiment)
    run = moe_jax.train(experiment, tmp_path / "experiment")
    assert results(tmp_path / "experiment") == results(trained)
    assert run.step == 12 and run.evaluate() == moe_jax.load(trained).evaluate()
    again = moe_jax.train(tiny, tmp_path / "experiment")
    assert again.step == 12 and repr(again).startswith("LoadedRun(")
    with pytest.raises(UserError, match="steps"):
        moe_jax.train(tiny, tmp_path / "experiment", overrides={"steps": 13})


def test_mistakes_are_told(tiny, tmp_path):
    with pytest.raises(UserError, match=r"config.stpes.*did you mean config.steps"):
        moe_jax.train(tiny, tmp_path / "run", overrides={"stpes": 3})
    assert not (tmp_path / "run").exists()


def test_the_command_is_the_same_module():
    from moe_jax import train

    assert train is moe_jax.train and callable(train) and callable(train.main)


def test_text_and_a_row(trained):
    run = moe_jax.load(trained)
    written = run.text("def f", 20, seed=1)
    assert written.startswith("def f") and len(written) > 5
    assert written == run.text("def f", 20, seed=1)
    batch = next(run.batches(1))
    one = {name: column[:1] for name, column in batch.items()}
    routes, all_routes = run.route(one), run.route(batch)
    for layer, found in routes.items():
        assert (found.expert_BSK == all_routes[layer].expert_BSK[:1]).all()
