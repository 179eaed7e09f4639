"""docs/own_task.md: its task and its model, from a file each, train as they stand there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.stats import pearsonr

import moe_jax
from moe_jax.config.overrides import apply_overrides, read_config_file
from moe_jax.config.tree import from_config_dict
from moe_jax.data.sentiment import Sentiment
from moe_jax.data.types import DataInfo
from moe_jax.nn.context import Context
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment
from tests.commands.own_files import ROOT, train
from tests.commands.runs import lines
from tests.data.rated_sentences import archive_of, card_of

PAGE = (ROOT / "docs/own_task.md").read_text("utf-8")


def write(name: str, folder: Path) -> None:
    found = re.search(rf"```python\n(# {name}.py.*?)```", PAGE, re.DOTALL)
    (folder / f"{name}.py").write_text(found[1])


@pytest.mark.lab
def test_a_task_of_one_file(tmp_path, monkeypatch):
    """Regression of the rating: what sums say is what scipy says of rows."""
    write("my_task", tmp_path)
    sha256 = archive_of(tmp_path / "sentences.zip")
    # The archive is another one than the package's: the run is told so by a module of its own.
    (tmp_path / "sitecustomize.py").write_text(
        "from dataclasses import replace\nfrom moe_jax.data.sentiment import CARD, Sentiment\n"
        f"archives = (replace(CARD.archives[0], sha256={sha256!r}),)\n"
        "Sentiment.card = replace(CARD, archives=archives)\n"
    )
    workdir = train(
        tmp_path, "sentiment.py", "--config.task.kind=my_task:Rating",
        f"--config.data.archive={tmp_path / 'sentences.zip'}",
        f"--config.data.data_dir={tmp_path}", "--config.data.tokenizer.kind=bytes",
        "--config.data.validation_fraction=0.3",
    )  # fmt: skip
    last = lines(workdir, "eval")[-1]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Sentiment, "card", card_of(sha256))
    run = moe_jax.load(workdir, trust=True)
    found, wanted = [], []
    for raw in run.batches(-1):
        batch = run.program.put(raw)
        inputs = run.program.step.task.inputs(batch)
        output = run.program.network.apply(run.params, inputs, Context(), run.state.router_state)
        real = raw["segments"].any(axis=1)
        found.append(np.asarray(output.predictions.logits_BC[:, 0])[real])
        wanted.append(raw["rating"][real])
    found, wanted = np.concatenate(found), np.concatenate(wanted)
    assert last["mean_squared_error"] == pytest.approx(np.mean((found - wanted) ** 2), rel=1e-4)
    assert last["correlation"] == pytest.approx(pearsonr(found, wanted).statistic, abs=1e-4)
    sys.modules.pop("my_task", None)


def test_the_model_of_the_page_predicts(tmp_path, monkeypatch):
    """Traced only; the lab trains it."""
    write("my_model", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    config = from_config_dict(read_config_file(ROOT / "configs/vision.py"), Experiment)
    experiment = apply_overrides(config, [("model.kind", "my_model:Lines")])
    rows = experiment.data.open("train")
    program = build(experiment, DataInfo.of(rows))
    raw = {name: np.stack([rows[n][name] for n in range(8)]) for name in rows[0]}
    inputs = program.step.task.inputs(program.put(raw, batch_size=8))
    state = program.abstract_state
    found = jax.eval_shape(
        program.network.apply, state.params, inputs, Context(train=True), state.router_state
    )
    assert found.predictions.logits_BC.shape == (8, 10)
    sys.modules.pop("my_model", None)


@pytest.mark.lab
def test_a_model_of_one_file(tmp_path):
    write("my_model", tmp_path)
    workdir = train(tmp_path, "vision.py", "--config.model.kind=my_model:Lines")
    first, last = lines(workdir, "eval")
    assert last["cross_entropy"] < first["cross_entropy"] < 2.5
