"""Every task through the commands: what holds for the next token holds for classes of texts and
images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import moe_jax
from moe_jax.analysis.specialisation import domain_counts
from moe_jax.config.errors import UserError
from tests.commands.runs import lines, results, start
from tests.drawn import some

CONFIGS = {
    "vision": """
    config = read_config_file(Path({configs!r}) / "vision.py")
    config.data.augmentation.mixup = 0.2
    config.data.augmentation.crop = 0
    config.moe.capacity_factor = 1.5
    config.model.num_heads = config.model.num_kv_heads = 2
    """,
    "texts": """
    config = read_config_file(Path({configs!r}) / "sentiment.py")
    config.data.kind = "labelled"
    config.data.path = {texts!r}
    config.data.domain = "site"
    config.data.data_dir = {data_dir!r}
    config.data.sequence_length = 16
    config.data.tokenizer.kind = "bytes"
    config.model.num_heads = config.model.num_kv_heads = 2
    """,
}
COMMON = """
from pathlib import Path
from moe_jax.config.overrides import read_config_file

def get_config(arg=""):
{own}
    config.steps = 18
    config.batch_size = 16
    config.model.num_layers = 2
    config.model.model_dim = 16
    config.model.head_dim = 8
    config.model.mlp_dim = 16
    config.moe.num_experts = 4
    config.moe.expert_dim = 16
    config.optimizer.learning_rate = 1e-2
    config.optimizer.schedule.warmup_steps = 2
    config.evaluation.every = 9
    config.evaluation.batches = -1
    config.checkpoint.every = 6
    config.logging.every = 2
    config.logging.load_every = 4
    config.logging.probe_every = 3
    config.logging.probe_rows = 5
    return config
"""


@pytest.fixture(scope="session", params=some(CONFIGS, ["vision"]))
def task(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def config(task, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp(task)
    words = {"good": "fine lovely great", "bad": "poor broken awful", "so": "table chair door"}
    rows = [
        {"text": f"{words[label].split()[n % 3]} {n % 7}", "label": label, "site": "ab"[n % 2]}
        for n in range(240)
        for label in words
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    configs = Path(__file__).parents[2] / "configs"
    own = CONFIGS[task].format(
        configs=str(configs), texts=str(folder / "rows.jsonl"), data_dir=str(folder)
    )
    (folder / "tiny.py").write_text(COMMON.format(own=own.strip("\n")))
    return str(folder / "tiny.py")


@pytest.fixture(scope="session")
def run(config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "classes"
    _, err = (process := start(config, workdir)).communicate(timeout=300)
    assert process.returncode == 0, err
    return workdir


def test_it_learns_and_says_so(run, task):
    first, last = lines(run, "eval")
    assert last["cross_entropy"] < first["cross_entropy"]
    assert {"accuracy", "macro_f1", "calibration_error"} <= last.keys()
    assert ("top5_accuracy" in last) == (task == "vision")
    assert ("domain/a/accuracy" in last) == (task == "texts")
    train = {k: v for line in lines(run, "train") for k, v in line.items()}
    assert {"moe/max_violation", "moe/probe/churn", "moe/layer_01/load"} <= train.keys()
    known = json.loads((run / "data.json").read_text())
    assert known["classes"] == (list("0123456789") if task == "vision" else ["bad", "good", "so"])


@pytest.mark.lab
def test_a_run_that_lost_its_last_checkpoints_goes_on_bit_for_bit(config, run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    for step in (12, 18):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    out, err = (process := start(config, workdir)).communicate(timeout=300)
    assert process.returncode == 0 and "resuming at step 6" in out, err
    assert results(workdir) == results(run)


@pytest.mark.lab
def test_on_another_mesh_the_losses_are_the_same(config, run, tmp_path):
    mesh = ("--config.mesh.data=2", "--config.mesh.expert=4")
    _, err = (process := start(config, tmp_path / "mesh", *mesh)).communicate(timeout=300)
    assert process.returncode == 0, err
    for one, two in zip(lines(run, "eval"), lines(tmp_path / "mesh", "eval"), strict=True):
        np.testing.assert_allclose(two["cross_entropy"], one["cross_entropy"], rtol=1e-4)


def test_evaluate_repeats_the_run(cli, run, tmp_path):
    file = tmp_path / "found.json"
    code, out, err = cli("evaluate", f"--workdir={run}", f"--json={file}")
    assert code == 0 and "accuracy" in out, err
    (found,) = json.loads(file.read_text())
    last = lines(run, "eval")[-1]
    for name in ("cross_entropy", "accuracy", "macro_f1", "moe/max_violation"):
        assert found["metrics"][name] == last[name], name


def test_a_loaded_run_tells_where_classes_and_places_go(run, task, tmp_path):
    loaded = moe_jax.load(run)
    trace = loaded.trace(1)
    trace.save(tmp_path / "trace.npz")
    again = type(trace).read(tmp_path / "trace.npz")
    assert again.classes == loaded.info.classes
    np.testing.assert_array_equal(again.label_N, trace.label_N)
    counts, names = domain_counts(again, "class")
    assert names == loaded.info.classes and counts.sum() > 0
    valid = (trace.segment_NS > 0).any(axis=1)
    assert np.all((trace.label_N >= 0) == valid)
    replayed = loaded.replay(trace)
    assert replayed["moe/dropped_fraction"] >= 0
    if task == "vision":
        assert trace.token_NS.max() == 15 and loaded.picture(0).pixels.shape == (8, 8, 1)
    with pytest.raises(UserError, match=r"gives one class a row, no text \(config.task\)"):
        loaded.generate("x")
    with pytest.raises(UserError, match="the leak is of models that predict the next token"):
        loaded.leak()


def test_the_report_shows_them(cli, run, task):
    code, _, err = cli("report", f"--workdir={run}", "--routing")
    assert code == 0, err
    page = (run / "report.html").read_text("utf-8")
    assert "Macro F1" in page and "Classes by experts" in page
    assert ("Patches by expert" in page) == (task == "vision")
    assert ("Domains by experts" in page) == (task == "texts")


@pytest.mark.grid
def test_no_mesh_changes_a_number(cli, config):
    """One variant of the check here, all of them in tests/checking."""
    code, out, err = cli("check", f"--config={config}", "--steps=1", "--only=fsdp=2")
    assert code == 0 and "all 1 variants equal the reference" in out, out + err


def test_it_can_be_planned(cli, config):
    code, out, err = cli("plan", f"--config={config}", "--topology=v5e:2x2", "--analytic")
    assert code == 0 and "parameters" in out, out + err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.kind=decoder", None),
        ("task.kind=language_model", "reads tokens, segments, and the data has image, label"),
        ("data.kind=stdlib_text", "reads label, and the data has tokens, segments, domain"),
        ("task.classes=2", "task.classes = 2: must be at least the"),
        ("moe.router.kind=hash", "routes by the ids of tokens, and this model knows none"),
    ],
)
def test_what_does_not_fit_together_is_told(cli, config, task, change, message, tmp_path):
    if task == "texts" and message and ("image" in message or "ids" in message):
        message = None  # texts have what is asked for
    if change == "model.kind=decoder" and task == "vision":
        message = "reads rows of text, and the data has none"
    if message is None:
        return
    argv = (f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--config.{change}")
    code, _, err = cli("train", *argv)
    assert code == 2 and message in err and "Traceback" not in err, err
