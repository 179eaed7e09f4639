"""What a run is made of stays with it: its tokenizer, its validation text, its tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from moe_jax import load
from moe_jax.config.errors import UserError
from tests.commands.refusals import assert_refused
from tests.commands.runs import lines

BPE = ("--config.data.tokenizer.kind=bpe", "--config.data.tokenizer.vocab_size=300")


class Made:
    """A run over a folder of texts of its own."""

    def __init__(self, cli, tiny: str, folder: Path, *flags: str):
        self.cli, self.texts, self.workdir = cli, folder / "texts", folder / "run"
        self.texts.mkdir()
        self.write("alpha beta gamma delta")
        data = (f"--config.data.path={self.texts}", f"--config.data.data_dir={folder / 'data'}")
        size = ("--config.model.vocab_size=300", "--config.steps=4", "--config.checkpoint.every=2")
        self.argv = [f"--config={tiny}", *data, *size, *flags]
        self("train", f"--workdir={self.workdir}", *self.argv)

    def write(self, words: str) -> None:
        for n in range(12):
            (self.texts / f"{n}.txt").write_text(f"{words} {n} " * 60)

    def __call__(self, name: str, *argv: str) -> str:
        code, out, err = self.cli(name, *argv)
        assert code == 0, err
        return out

    def evaluate(self, *argv: str) -> dict:
        file = self.workdir.parent / "result.json"
        self("evaluate", f"--workdir={self.workdir}", f"--json={file}", *argv)
        return json.loads(file.read_text())[-1]["metrics"]


@pytest.mark.lab
def test_another_text_is_refused_and_the_tokenizer_is_the_runs(cli, tiny, tmp_path):
    run = Made(cli, tiny, tmp_path, *BPE)
    before = run.evaluate()
    text = run("generate", f"--workdir={run.workdir}", "--prompt=alpha", "--temperature=0")
    run.write("wholly other words than before")
    assert_refused(
        cli("evaluate", f"--workdir={run.workdir}"),
        "the data are not those of the run",
        "data.validation.tokenizer.sha256",
        "data.validation.content.sha256",
        "--allow_changes",
    )
    assert run("generate", f"--workdir={run.workdir}", "--prompt=alpha", "--temperature=0") == text
    # The model reads other text by its own tokenizer: more bits for words it has never seen.
    after = run.evaluate("--allow_changes")
    assert after["bits_per_byte"] > before["bits_per_byte"]
    with pytest.raises(UserError, match="not those of the run"):
        load(run.workdir).evaluate(1)
    loaded = load(run.workdir, allow_changes=True)
    own = json.loads((run.workdir / "tokenizer" / "description.json").read_text())["description"]
    assert loaded.rows.tokenizer.describe() == loaded.tokenizer.describe() == own


@pytest.mark.lab
@pytest.mark.parametrize(
    "flags", [BPE, pytest.param((), marks=pytest.mark.grid)], ids=["bpe", "bytes"]
)
def test_a_sample_needs_no_text(flags, cli, tiny, tmp_path):
    run = Made(cli, tiny, tmp_path, *flags)
    shutil.rmtree(run.texts)
    shutil.rmtree(tmp_path / "data")
    assert "alpha" in run("generate", f"--workdir={run.workdir}", "--prompt=alpha")
    assert_refused(cli("evaluate", f"--workdir={run.workdir}"), "no file or folder")


@pytest.mark.lab
def test_a_warm_start_needs_no_text_and_knows_another_tokenizer(cli, tiny, tmp_path):
    run = Made(cli, tiny, tmp_path, *BPE)
    shutil.rmtree(tmp_path / "data")
    argv = [f"--warm_start={run.workdir}", "--config.steps=2"]
    other = tmp_path / "other"
    out = run("train", f"--workdir={other / 'same'}", *run.argv, *argv)
    assert "another tokenizer" not in out
    out = run("train", f"--workdir={other / 'bytes'}", *run.argv[:-2], *argv)
    assert "embedding (another tokenizer)" in out and "head (another tokenizer)" in out
    run.write("the text has changed")  # so has the tokenizer that is trained on it
    out = run("train", f"--workdir={other / 'changed'}", *run.argv, *argv)
    assert "embedding (another tokenizer)" in out and "head (another tokenizer)" in out


@pytest.mark.lab
def test_validation_text_is_held_to_the_run(cli, tiny, tmp_path):
    held = tmp_path / "held.txt"
    held.write_text("alpha gamma " * 100)
    run = Made(cli, tiny, tmp_path, f"--config.data.validation={held}")
    held.write_text("beta delta " * 100)
    message = ("data.validation.content.sha256",)
    assert_refused(cli("evaluate", f"--workdir={run.workdir}"), *message)
    longer = (f"--workdir={run.workdir}", "--config.steps=6")
    assert_refused(cli("train", *run.argv, *longer), *message, "--allow_changes")
    code, _, err = cli("train", *run.argv, *longer, "--allow_changes")
    assert code == 0, err
    history = (run.workdir / "history.jsonl").read_text().splitlines()
    assert "data.validation.content.sha256" in history[-1]
    assert lines(run.workdir, "eval")[-1]["step"] == 6


@pytest.mark.grid
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_changed_bit_of_the_prepared_tokens_is_found(split, cli, tiny, tmp_path):
    run = Made(cli, tiny, tmp_path)
    (file,) = (tmp_path / "data").rglob(f"{split}.bin")
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    longer = (f"--workdir={run.workdir}", "--config.steps=6")
    assert_refused(cli("train", *run.argv, *longer), str(file), "sha256", "prepare")


def test_ids_below_zero(cli, tiny, tmp_path):
    ids = np.arange(4000) % 50
    ids[::40] = -1
    np.save(tmp_path / "ids.npy", ids.astype(np.int32))
    data = [f"--config.data.{split}={tmp_path / 'ids.npy'}" for split in ("train", "validation")]
    config = Path(tiny).read_text().replace("config.data.kind", "config.name")
    config = "\n".join(
        line for line in config.splitlines() if "data.path" not in line and "data_dir" not in line
    )
    file = tmp_path / "ids.py"
    file.write_text(config.replace('config.name = "tiny"', 'config.data.kind = "memmap"'))
    argv = [f"--config={file}", f"--workdir={tmp_path / 'run'}", *data]
    assert_refused(cli("train", *argv, "--config.data.tokenizer.vocab_size=259"), "the id -1")


@pytest.mark.lab
def test_a_bpe_sets_the_vocabulary(cli, tiny, tmp_path):
    """Without model.vocab_size; the number is in config.json, and the run goes on with it."""
    flags = ("--config.data.tokenizer.kind=bpe", "--config.data.tokenizer.vocab_size=301")
    flags += ("--config.optimizer.schedule.warmup_steps=1", "--allow_changes")
    for steps in (2, 4):
        argv = (f"--config={tiny}", f"--workdir={tmp_path / 'r'}", f"--config.steps={steps}")
        code, out, err = cli("train", *argv, *flags)
        assert code == 0, err
    assert "resuming at step 2" in out
    assert "  data: 40 files, 40 documents, " in out
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert config["model"]["vocab_size"] == 304
    code, _, err = cli("evaluate", f"--workdir={tmp_path / 'r'}")
    assert code == 0, err


@pytest.mark.grid
def test_metrics_of_a_run_whose_checkpoints_are_gone_are_kept(cli, tiny, trained, tmp_path):
    """The same command began at step 0 and emptied them, without a word."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints")
    before = (workdir / "metrics.jsonl").read_text()
    code, out, err = cli("train", f"--config={tiny}", f"--workdir={workdir}")
    assert code == 0, err
    assert "metrics up to step 12 and no checkpoint" in out and "metrics.before1.jsonl" in out
    assert (workdir / "metrics.before1.jsonl").read_text() == before
    assert lines(workdir, "train")[-1]["step"] == 12


@pytest.mark.lab
def test_a_false_start_is_not_kept(cli, tiny, tmp_path):
    """Less than the first checkpoint: what a run that is killed early leaves."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text('{"step": 2, "split": "train", "loss": 1.0}\n')
    code, _, err = cli("train", f"--config={tiny}", f"--workdir={workdir}", "--config.steps=1")
    assert code == 0, err
    assert not list(workdir.glob("metrics.before*"))


@pytest.mark.lab
def test_overflow_is_told_and_its_factor_belongs_to_the_run(cli, tiny, tmp_path):
    """53 % of the rows became zeros where the line said "dropped 0.0 %"."""
    mesh = ("--config.mesh.data=2", "--config.mesh.expert=4", "--config.logging.every=1")
    argv = [f"--config={tiny}", f"--workdir={tmp_path / 'run'}", "--config.steps=5", *mesh]
    code, out, err = cli("train", *argv, "--config.moe.receive_factor=0.25")
    assert code == 0, err
    assert out.count("of the assignments found no room") == 1 and "overflow" in out
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "5")
    assert_refused(cli("train", *argv), "moe.receive_factor", "--allow_changes")


@pytest.mark.lab
@pytest.mark.parametrize(
    "change",
    [
        pytest.param("batch_size=16", marks=pytest.mark.grid),
        pytest.param("data.sequence_length=16", marks=pytest.mark.grid),
        "moe.router.k=1",
    ],
)
def test_other_sizes_with_allow_changes(change, cli, tiny, trained, tmp_path):
    """The probe of the old run is of another shape: it starts anew."""
    path, workdir = change.partition("=")[0], tmp_path / "run"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    argv = [f"--config={tiny}", f"--workdir={workdir}", f"--config.{change}"]
    assert_refused(cli("train", *argv), path, "--allow_changes")
    code, _, err = cli("train", *argv, "--allow_changes")
    assert code == 0, err
    assert lines(workdir, "train")[-1]["step"] == 12
    assert path in (workdir / "history.jsonl").read_text()
