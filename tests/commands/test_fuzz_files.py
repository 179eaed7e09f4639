"""Whatever a file of a run or a flag holds: a page, a run or one message, never a traceback."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.analysis.read_run import read_metrics
from moe_jax.analysis.report import write_report
from moe_jax.config import lock
from moe_jax.config.errors import UserError
from moe_jax.config.overrides import load_config
from moe_jax.config.tree import to_json_dict
from moe_jax.notebook import config_of
from moe_jax.sweeps.folder import SweepFolder
from moe_jax.training.checkpoint import CheckpointConfig, Checkpoints
from moe_jax.training.experiment import Experiment
from moe_jax.training.identity import config_changes
from moe_jax.training.rules import cross_check, warnings
from moe_jax.training.workdir import set_aside
from moe_jax.training.writers import drop_after
from tests.analysis.fake_run import write_run
from tests.fuzz import DEEP, damaged, drawn, json_values, numbers, texts, torn

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.py")


def text_of(value) -> str:
    return json.dumps(value, ensure_ascii=True)


EXPERIMENT = load_config(QUICKSTART, (), Experiment)
CONFIG = to_json_dict(EXPERIMENT)
PATHS: list[str] = []


def collect(tree: dict, prefix: str = "") -> None:
    for key, value in tree.items():
        PATHS.append(f"{prefix}{key}")
        if isinstance(value, dict):
            collect(value, f"{prefix}{key}.")


collect(CONFIG)
FLAG_TEXTS = st.one_of(
    texts,
    numbers.map(str),
    json_values.map(text_of),
    st.sampled_from(["(1,", "((1),)", "1e999", "True", "0x10", "a:b", "os:system", ".:.", "{}"]),
)


@drawn
@given(st.lists(st.tuples(st.sampled_from(PATHS), FLAG_TEXTS), min_size=1, max_size=3))
def test_config_values(overrides):
    try:
        experiment = load_config(QUICKSTART, overrides, Experiment)
        cross_check(experiment, 1)  # which raises for a mesh of more devices
    except UserError:
        return
    warnings(experiment)
    json.dumps(to_json_dict(experiment))


@drawn
@given(damaged(CONFIG))
def test_a_config_json(tree):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(text_of(tree))
        try:
            experiment = config_of(folder)
        except UserError:
            pass
        else:
            config_changes(CONFIG, experiment)
    if isinstance(tree, dict):
        config_changes(tree, EXPERIMENT)  # a meta.json's: compared as text where it is none


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("fake") / "run", steps=30, layers=1, experts=4)


def report(folder: Path) -> None:
    try:
        assert write_report([folder]).is_file()
    except UserError as error:
        assert str(folder) in str(error)


@drawn
@given(data=st.data())
def test_reports_of_damaged_runs(fake, data):
    """One file of the run is torn, or holds other values."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        shutil.copytree(fake, run)
        file = run / data.draw(
            st.sampled_from(["metrics.jsonl", "config.json", "environment.json"])
        )
        lines = file.read_bytes().splitlines() if file.suffix == ".jsonl" else [file.read_bytes()]
        at = data.draw(st.integers(0, len(lines) - 1))
        lines[at] = data.draw(
            torn(lines[at])
            | damaged(json.loads(lines[at])).map(lambda tree: text_of(tree).encode())
            | st.just(DEEP.encode())
        )
        file.write_bytes(b"\n".join(lines))
        report(run)
        with contextlib.suppress(UserError):
            read_metrics(run)
        drop_after(run / "metrics.jsonl", 10)
        set_aside(run, 10**9)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "environment.json"])
def test_reports_of_odd_files(name, fake, tmp_path):
    run = tmp_path / "run"
    for content in (b"", b"[]", b"\xff\xfe", DEEP.encode(), b"null", None):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(fake, run)
        (run / name).unlink()
        if content is None:
            (run / name).mkdir()
        else:
            (run / name).write_bytes(content)
        report(run)


@drawn
@given(data=st.data())
def test_checkpoints_whose_texts_are_damaged(trained, data):
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "checkpoints"
        shutil.copytree(trained / "checkpoints", saved)
        names = ["12/meta.json", "8/meta.json", "manifests/12.json"]
        file = saved / data.draw(st.sampled_from(names))
        content = file.read_bytes()
        file.write_bytes(
            data.draw(
                torn(content)
                | damaged(json.loads(content)).map(lambda tree: text_of(tree).encode())
                | st.just(DEEP.encode())
            )
        )
        for verify in (True, False):
            config = CheckpointConfig(verify=verify)
            with Checkpoints(saved, config, read_only=True) as checkpoints:
                try:
                    known = checkpoints.read_metadata()
                except UserError as error:
                    assert str(saved) in str(error)
                else:
                    assert known is not None


@drawn
@given(st.binary(max_size=60) | json_values.map(lambda value: text_of(value).encode()))
def test_locks(content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / lock.FILE).write_bytes(content)
        with lock.FolderLock(Path(folder), "training"):
            pass
        lock.holder_text(lock.holder_of(content.decode("utf-8", "replace")))


POINT = {"name": "a", "arm": "a", "overrides": {"seed": 1}, "config": CONFIG}


@drawn
@given(damaged([POINT]) | damaged([POINT]).map(text_of))
def test_sweeps(tree):
    with tempfile.TemporaryDirectory() as folder:
        text = tree if isinstance(tree, str) else text_of(tree)
        for name in ("sweep.json", "question.json"):
            (Path(folder) / name).write_text(text[: len(text) // 2] if "NaN" in text else text)
        sweep = SweepFolder(folder)
        for read in (sweep.read, sweep.known, sweep.question):
            with contextlib.suppress(UserError):
                read()
