from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from moe_jax.cli import run_command
from moe_jax.config.errors import UserError
from moe_jax.data.digits import Digits
from moe_jax.data.folder import Folder
from moe_jax.data.image_folder import ImageFolder
from moe_jax.data.labelled_folder import LabelledFolder
from moe_jax.data.planted import Planted
from moe_jax.data.prepare import FLAGS, USAGE, as_overrides, chosen, main, prepare
from moe_jax.data.progress import ConsoleReporter, Silent

CONFIG = """
from dataclasses import dataclass, field
from moe_jax.config.fields import kind
from moe_jax.config.tree import to_config_dict
from moe_jax.data.datasets import DATASETS, Dataset
from moe_jax.data.planted import Planted

@dataclass(frozen=True, kw_only=True)
class Config:
    data: Dataset = kind(DATASETS, lambda: Planted(rows=33))
    steps: int = 3

def get_config(arg=""):
    return to_config_dict(Config())
"""


def cli(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "moe_jax.data.prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_door_prepares_and_says_where(texts, tmp_path):
    flags = ("--dataset=folder", f"--dataset.path={texts}", f"--dataset.data_dir={tmp_path}")
    done = cli(*flags, "--dataset.sequence_length=16")
    assert done.returncode == 0, done.stderr
    dataset = Folder(
        path=str(texts), data_dir=str(tmp_path), sequence_length=16, auto_prepare=False
    )
    rows = dataset.open("train")  # it is prepared now
    content = rows.fingerprint["content"]
    lines = done.stdout.splitlines()
    assert lines[0] == f"in {dataset.stored_in()[0]}"
    assert lines[1].startswith("read: 3 files, 4 documents, ")
    assert lines[2].startswith("splits: train 4 documents, ")
    assert lines[3] == (
        f"train: {len(rows):,} rows of 17, {content['tokens']:,} tokens, "
        f"{content['bytes']:,} bytes of text"
    )
    assert lines[4].startswith("validation: ")
    assert "tokenising train" in done.stderr  # a line a stage, where there is no terminal
    assert "tokenising" not in cli(*flags).stderr  # nothing is left to do


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give either --dataset=KIND or --config=FILE"),
        (("--dataset=planted", "--config=x.py"), "give either"),
        (("--dataset=plnted",), "did you mean planted?"),
        (("--dataset=planted", "--dataset.rosw=3"), "did you mean --dataset.rows?"),
        (("--dataset=folder",), "  --dataset.path = '': must name"),
        (
            ("--dataset=folder", "--dataset.path=/no/data.txt"),
            "--dataset.path: no file or folder /no/data.txt",
        ),
        (("--dataset=memmap",), "--dataset.train names no file"),
        (("--config=nowhere.py",), "no config file nowhere.py"),
    ],
)
def test_mistakes_end_with_2_and_one_message(flags, message, capsys):
    argv = as_overrides(flags)
    assert run_command(main, usage=USAGE, flags=FLAGS, overrides=True, argv=argv) == 2
    written = capsys.readouterr().err
    assert message in written
    assert "Traceback" not in written


def test_the_dataset_of_a_config_is_found(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    overrides = [("data.symbols", "9"), ("steps", "5"), ("optimizer.learning_rate", "1")]
    assert chosen(None, str(file), overrides) == Planted(rows=33, symbols=9)
    with pytest.raises(UserError, match=r"data\.symbolls"):
        chosen(None, str(file), [("data.symbolls", "9")])


def test_a_dataset_by_its_kind_and_settings():
    assert chosen("planted", None, [("data.rows", "7")]) == Planted(rows=7)
    argv = ["--dataset=planted", "--dataset.rows=7", "--debug"]
    assert as_overrides(argv) == ["--dataset=planted", "--config.data.rows=7", "--debug"]


def test_what_needs_no_preparation_is_said_so():
    lines = prepare(Planted(rows=5, validation_rows=2, sequence_length=8), Silent())
    assert lines == [
        "needs no preparation",
        "train: 5 rows of 9, 45 tokens",
        "validation: 2 rows of 9, 18 tokens",
    ]


def test_images_say_their_size_and_classes(tmp_path):
    """They have no tokens; that ended in a traceback."""
    lines = prepare(Digits(), Silent())
    assert lines[1:] == [
        "train: 1,437 rows: image of 8 x 8 x 1, 10 classes",
        "validation: 360 rows: image of 8 x 8 x 1, 10 classes",
    ]
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.new("RGB", (9, 7), (20 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
    data = ImageFolder(path=str(tmp_path), height=4, width=6, validation_fraction=0.3)
    first = prepare(data, Silent())[1]
    assert first.startswith("train: ") and first.endswith(" rows: image of 4 x 6 x 3, 2 classes")


def test_labelled_texts_say_their_length_and_classes(tmp_path):
    lines = [json.dumps({"text": f"the day {i}", "label": "ab"[i % 2]}) for i in range(40)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    data = LabelledFolder(
        path=str(tmp_path / "texts.jsonl"),
        data_dir=str(tmp_path),
        sequence_length=16,
        validation_fraction=0.3,
    )
    train = next(line for line in prepare(data, Silent()) if line.startswith("train: "))
    assert " rows of 16, 2 classes" in train


def test_a_wrong_config_is_refused():
    with pytest.raises(UserError, match="rows = 0"):
        prepare(Planted(rows=0), Silent())


def test_a_progress_bar_on_a_terminal(texts, tmp_path):
    from rich.console import Console

    with (tmp_path / "screen").open("w") as screen:
        console = Console(file=screen, force_terminal=True, width=100)
        with ConsoleReporter(console) as reporter:
            Folder(path=str(texts), data_dir=str(tmp_path)).prepare(reporter)
    shown = Path(tmp_path / "screen").read_text()
    assert "tokenising train" in shown
    assert "4/4" in shown  # of four documents, once it is known
