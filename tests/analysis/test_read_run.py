"""Reading a workdir: torn lines, resumed runs, absent files, names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moe_jax.analysis.read_run import layer_name, layer_of, read_metrics, read_runs
from moe_jax.config.errors import UserError


def write(folder: Path, *lines: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def train(step: int, **values: object) -> dict[str, object]:
    return {"step": step, "split": "train", **values}


def test_lines_come_as_they_stand(tmp_path):
    lines = [train(1, loss=2.0), train(1, **{"moe/probe/churn": 0.5}), train(2, loss=None)]
    assert read_metrics(write(tmp_path, *lines)) == lines
    assert read_metrics(str(tmp_path)) == lines


def test_torn_lines_are_left_out(tmp_path):
    torn = '{"step": 2, "split": "train", "lo'
    write(tmp_path, train(1, loss=2.0), torn + "\n", train(3, loss=1.0), torn)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3]
    assert read_runs([tmp_path])[0].series["train", "loss"].steps.tolist() == [1, 3]


def test_a_resumed_run_replaces_what_it_has_overtaken(tmp_path):
    first = [train(step, loss=float(step)) for step in (10, 20, 30, 40)]
    again = [train(step, loss=float(-step)) for step in (30, 40, 50)]
    write(tmp_path, *first, {"step": 40, "split": "eval", "cross_entropy": 1.0}, *again)
    assert read_metrics(tmp_path) == first[:2] + again
    record = read_runs([tmp_path])[0]
    assert record.series["train", "loss"].steps.tolist() == [10, 20, 30, 40, 50]
    assert record.series["train", "loss"].values.tolist() == [10, 20, -30, -40, -50]
    assert ("eval", "cross_entropy") not in record.series  # not evaluated anew yet
    assert record.last_step == 50


def test_the_last_value_of_a_step_counts(tmp_path):
    write(tmp_path, train(10, loss=1.0), train(10, loss=2.0))
    assert read_runs([tmp_path])[0].series["train", "loss"].values.tolist() == [2.0]


def test_values_that_are_not_finite_are_nan(tmp_path):
    write(tmp_path, train(1, loss=None), '{"step": 2, "loss": NaN, "split": "train"}\n',
          '{"step": 3, "loss": Infinity, "split": "train"}\n', train(4, loss=3))  # fmt: skip
    series = read_runs([tmp_path])[0].series["train", "loss"]
    assert np.isnan(series.values).tolist() == [True, True, True, False]
    assert series.last == 3


def test_an_integer_beyond_float64_is_not_finite(tmp_path):
    digits = "9" * 309
    lines = [f'{{"step": {n}, "split": "train", "loss": {x}}}' for n, x in ((1, 2), (2, digits))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    values = read_runs([tmp_path])[0]["loss"].values
    assert values[0] == 2 and not np.isfinite(values[1])


def test_lists_are_rows(tmp_path):
    name = layer_name(7, "load")
    write(tmp_path, train(1, **{name: [0.25, 0.75]}), train(2, **{name: [0.5, 0.5], "note": "x"}))
    record = read_runs([tmp_path])[0]
    assert record.series["train", name].values.tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert record.layers("load") == [7]
    assert record.names() == [name]  # texts are no metrics


def test_names_of_layers():
    assert layer_of("moe/layer_07/probe/churn") == (7, "probe/churn")
    assert layer_of("moe/max_violation") == (None, "moe/max_violation")
    assert layer_of(layer_name(112, "load")) == (112, "load")


def test_train_comes_before_eval_unless_asked_otherwise(tmp_path):
    write(tmp_path, train(1, x=1.0), {"step": 1, "split": "eval", "x": 2.0})
    record = read_runs([tmp_path])[0]
    assert record.get("x").last == 1
    assert record.get("x", "eval", "train").last == 2
    assert record.get("y") is None


@pytest.mark.parametrize("content", [None, "", "\n\n", "torn", '{"loss": 1}\n', "[1]\n"])
def test_a_folder_without_metrics_is_told_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    for read in (read_metrics, lambda folder: read_runs([folder])):
        with pytest.raises(UserError) as error:
            read(tmp_path)
        assert str(tmp_path) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_metrics(tmp_path / "nowhere")


def test_a_broken_config_is_told_and_a_missing_one_is_empty(tmp_path):
    write(tmp_path, train(1, loss=1.0))
    assert read_runs([tmp_path])[0].config == {}
    (tmp_path / "config.json").write_text('{"steps": ')
    with pytest.raises(UserError, match=r"config\.json"):
        read_runs([tmp_path])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x"], ["x"]),
        (["a/x", "a/y"], ["x", "y"]),
        (["lr_1/seed_0", "lr_2/seed_0"], ["lr_1/seed_0", "lr_2/seed_0"]),
        (["a/x", "a/x"], ["x"]),
        (
            ["a_sweep_with_a_long_name_lr_1e-3_end", "a_sweep_with_a_long_name_lr_1e-4_end"],
            ["…1e-3…", "…1e-4…"],
        ),
    ],
)
def test_short_names_tell_runs_apart(tmp_path, paths, names):
    folders = [write(tmp_path / path, train(1, loss=1.0)) for path in paths]
    assert [record.name for record in read_runs(folders)] == names
