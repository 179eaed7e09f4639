"""The table of applications is what the recorded twins say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from experiments.tasks.applications import APPLICATIONS
from experiments.tasks.baselines import windows
from experiments.tasks.page import PAGES, RESULTS, row, verdict, written
from moe_jax.config.overrides import load_config
from moe_jax.training.experiment import Experiment

ROOT = Path(__file__).parents[2]


def test_the_pages_are_up_to_date():
    for page, columns in PAGES.items():
        text = page.read_text("utf-8")
        assert written(text, columns) == text
    assert {file.stem for file in RESULTS.glob("*.json")} <= APPLICATIONS.keys()


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_means_and_intervals_against_scipy(file):
    one, told = APPLICATIONS[file.stem], json.loads(file.read_text("utf-8"))
    sparse, dense = (
        np.array([run[one.metric] for run in told["runs"][arm]]) for arm in ("sparse", "dense")
    )
    assert len(sparse) == len(dense) >= 3
    assert sum(one["runs"] for one in told["commits"]) == 2 * len(sparse)
    assert not any(one["dirty"] for one in told["commits"])
    cells = row(one, told)
    assert cells[5:7] == [f"{dense.mean():.4f}", f"{sparse.mean():.4f}"]
    gap = sparse - dense
    low, high = scipy.stats.t.interval(0.95, len(gap) - 1, gap.mean(), scipy.stats.sem(gap))
    assert cells[7] == f"{gap.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def test_verdicts():
    most = APPLICATIONS["vision"]
    least = replace(most, best="min")
    assert verdict(most, 0.1, 0.2, 0.9, 0.8) == "MoE ahead"
    assert verdict(least, 0.1, 0.2, 0.7, 0.8) == "dense ahead"
    assert verdict(most, -0.2, -0.1, 0.9, 0.8) == "dense ahead"
    assert verdict(least, -0.2, -0.1, 0.7, 0.8) == "MoE ahead"
    assert verdict(most, -0.1, 0.1, 0.9, 0.8) == "no difference shown"
    not_beaten = "; the simple baseline is not beaten"
    assert verdict(most, -0.1, 0.1, 0.8, 0.8) == "no difference shown" + not_beaten
    assert verdict(least, -0.2, -0.1, 0.9, 0.8) == "MoE ahead" + not_beaten


def test_a_window_lies_where_its_features_say():
    """A bright square is nowhere but in windows that have its edges."""
    image = np.zeros((64, 64, 3))
    image[40:56, 8:24] = 1
    features, boxes = windows.windows(image)
    corner = windows.corners(boxes) * 64
    inside = (corner[:, :2] < [24, 56]).all(1) & (corner[:, 2:] > [8, 40]).all(1)
    near = (corner[:, :2] < [32, 64]).all(1) & (corner[:, 2:] > [0, 32]).all(1)
    has = np.abs(features).sum(axis=1) > 0.1
    assert has.any() and not has[~near].any() and has[inside & (corner[:, 0] < 2)].any()
    assert (corner >= -0.5).all() and (corner <= 64.5).all()


def test_of_doubles_the_best_stays():
    corner = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]])
    assert windows.without_doubles(corner, np.array([0.5, 0.9, 0.1])).tolist() == [1, 2]


@pytest.mark.parametrize("name", APPLICATIONS)
def test_the_arms_differ_in_nothing_but_their_experts(name):
    """The twin has as much arithmetic, the same data, seeds, steps and optimizer."""
    configs = APPLICATIONS[name].configs()
    sparse, dense = (load_config(str(ROOT / configs[arm]), (), Experiment) for arm in configs)
    assert sparse.moe.every and not dense.moe.every
    assert replace(dense, name=sparse.name, moe=sparse.moe, model=sparse.model) == sparse
    flops = [one.completed().with_vocabulary(0).counts.flops_per_token for one in (sparse, dense)]
    assert flops[0] == pytest.approx(flops[1], rel=0.02)
