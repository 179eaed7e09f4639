"""Metrics that are no sums: results of each row, gathered once an evaluation, in its order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

from moe_jax.config.overrides import load_config
from moe_jax.data.pipeline import EvaluationBatches
from moe_jax.tasks.classification import ClassOfRow
from moe_jax.training.build import build
from moe_jax.training.evaluation import evaluate
from moe_jax.training.experiment import Experiment
from tests.drawn import some

VISION = Path(__file__).parents[2] / "configs/vision.py"
SMALL = {
    "model.num_layers": 1,
    "model.model_dim": 16,
    "model.head_dim": 4,
    "moe.every": 1,
    "moe.first": 0,
    "moe.expert_dim": 8,
    "moe.num_experts": 4,
    "batch_size": 16,
    "evaluation.batch_size": 64,
}


class Ranked(ClassOfRow):
    """The rank correlation of the label and the first logit."""

    def rows(self, predictions, raw):
        return {"logit": predictions.logits_BC[:, 0], "label": raw["label"]}

    def metrics(self, sums, rows=None):
        found = super().metrics(sums)
        if rows:
            found["spearman"] = float(spearmanr(rows["logit"], rows["label"]).statistic)
            self.seen = rows
        return found


EIGHT = {"mesh.data": 2, "mesh.expert": 4}
CASES = [({}, 64), (EIGHT, 64), ({}, 16), (EIGHT, 16)]


@pytest.mark.parametrize(("mesh", "max_rows"), some(CASES, [CASES[2]], several=True))
def test_rows_come_once_in_their_order_and_without_padding(mesh, max_rows):
    experiment = load_config(str(VISION), {**SMALL, **mesh}.items(), Experiment)
    rows = experiment.data.open("validation")
    program = build(experiment, rows, jax.devices() if mesh else jax.devices()[:1])
    task = Ranked(10)
    step = dataclasses.replace(program.step, task=task, max_rows=max_rows)
    program = dataclasses.replace(program, step=step)
    state = program.init()
    batches = EvaluationBatches(rows, 64, columns=program.columns)
    metrics = evaluate(program, state, batches)
    labels = [int(rows[i]["label"]) for i in range(len(rows))]
    np.testing.assert_array_equal(task.seen["label"], labels)
    assert metrics["spearman"] == pytest.approx(
        spearmanr(task.seen["logit"], labels).statistic, abs=1e-6
    )
