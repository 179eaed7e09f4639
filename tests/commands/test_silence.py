"""Each command says what it is doing; when it is said, tests/config/test_activity.py shows."""

from __future__ import annotations

import pytest

from moe_jax.config import activity


class Recorded(list):
    """A stack that keeps what was ever on it."""

    def __init__(self):
        self.ever: list[activity.Doing] = []

    def append(self, one: activity.Doing) -> None:
        self.ever.append(one)
        super().append(one)


@pytest.fixture
def activities(cli, monkeypatch):
    """activities("train", "--flag=...") -> what it was doing, and how many parts were done."""

    def call(*argv: str) -> dict[str, int]:
        recorded = Recorded()
        monkeypatch.setattr(activity._watch, "stack", recorded)
        code, _, err = cli(*argv)
        assert code == 0, err
        assert not recorded
        return {one.what: one.done for one in recorded.ever}

    return call


@pytest.mark.lab
def test_training(activities, tiny, tmp_path):
    argv = [f"--config={tiny}", f"--workdir={tmp_path / 'run'}", "--config.steps=4"]
    found = activities("train", *argv, "--config.evaluation.every=4")
    for what in (
        "building the model",
        "initialising the parameters",
        "compiling the training step",
    ):
        assert what in found
    assert {
        "step 2",
        "step 4",
        "probing the routes (the first time it compiles)",
        "saving the checkpoint",
    } <= found.keys()
    assert found["evaluating"] == 2
    assert "loading the checkpoint" in activities("train", *argv)


def test_evaluation(activities, trained, tmp_path):
    found = activities(
        "evaluate", f"--workdir={trained}", f"--trace={tmp_path / 'trace'}", "--leak"
    )
    assert {"building the model", "loading the checkpoint"} <= found.keys()
    assert found["tracing"] == found["measuring the leak"] == 2
    assert activities("evaluate", f"--workdir={trained}")["evaluating"] == 2


def test_samples(activities, trained):
    found = activities("generate", f"--workdir={trained}", "--prompt=alpha", "--max_tokens=5")
    assert 5 <= found["writing"] <= 10


@pytest.mark.lab
def test_a_check(activities, tiny):
    found = activities("check", f"--config={tiny}", "--steps=1", "--only=data=8 rows")
    assert found["compiling and comparing"] > 0 and "computing the reference" in found


def test_plans(activities, tiny):
    argv = [f"--config={tiny}", "--topology=v5e:2x4", "--analytic", "--search"]
    assert activities("plan", *argv)["estimating"] > 1
