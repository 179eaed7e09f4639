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
from moe_jax.data.types import FILLS
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


def test_a_row_without_a_label_is_predicted_and_routed_as_with_one():
    """And one that only fills up a batch is not routed; several images share experts' room."""
    changes = {**SMALL, "moe.group_size": 64, "moe.capacity_factor": 0.5}
    experiment = load_config(str(VISION), changes.items(), Experiment)
    rows = experiment.data.open("validation")
    program = build(experiment, rows, jax.devices()[:1])
    *_, raw = EvaluationBatches(rows, 64, columns=program.columns)
    real = int(np.sum(~raw[FILLS]))
    assert 8 < real < 64
    label = raw["label"].copy()
    label[[2, 5]] = -1
    state, scalars = program.init(), program.scalars(0)

    def seen(batch):
        found = program.observe_step(state.params, state.router_state, program.put(batch), scalars)
        return np.asarray(found.routes.kept_BSK), np.asarray(found.loss_BS)

    kept, loss = seen(raw)
    kept_without, loss_without = seen({**raw, "label": label})
    np.testing.assert_array_equal(kept_without, kept)
    assert kept[:, :real].any(axis=(2, 3)).all() and not kept[:, real:].any()
    assert (loss_without[[2, 5]] == 0).all() and (loss[:real] > 0).all()
    _, segment_PBS = program.tokens_and_segments({**raw, "label": label})
    assert (segment_PBS[0, :real] == 1).all() and not segment_PBS[0, real:].any()


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
