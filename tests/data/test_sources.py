"""What `path` and `validation` name: folders, files, globs, several; none is trained on twice."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from moe_jax.cli import run_command
from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.config.overrides import apply_overrides
from moe_jax.data import prepare
from moe_jax.data.faults import Tally
from moe_jax.data.folder import Folder
from moe_jax.data.memmap import Memmap
from moe_jax.data.mixture import Mixture
from moe_jax.data.prepared import prepare_command
from tests.data.corpora import documents_of, folder, write


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """shards/{0,1}.jsonl.zst, shards/deep/2.jsonl.zst, shards/notes.md, other/3.parquet."""
    for name in ("shards/deep", "other"):
        (tmp_path / name).mkdir(parents=True)
    for i, name in enumerate(("0.jsonl.zst", "1.jsonl.zst", "deep/2.jsonl.zst")):
        write(tmp_path / "shards" / name, [str(i)])
    (tmp_path / "shards" / "notes.md").write_text("notes")
    write(tmp_path / "other" / "3.parquet", ["3"])
    return tmp_path


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("shards", "012"),
        ("shards/1.jsonl.zst", "1"),
        ("shards/*.jsonl.zst", "01"),
        ("shards/**/*.zst", "012"),
        ("shards/*", "012"),  # with the folder that it matches, without what has another suffix
        ("*/[13]*", "31"),
        ("shards/*.md", ["notes"]),
        (("other", "shards/0*"), "30"),
        (("shards/1*", "shards", "shards/1.jsonl.zst"), "102"),  # each file once
    ],
)
def test_a_path_a_glob_or_several(path, found, shards, monkeypatch):
    monkeypatch.chdir(shards)
    assert documents_of(path) == list(found)
    absolute = (path,) if isinstance(path, str) else path
    assert documents_of(tuple(f"{shards}/{one}" for one in absolute)) == list(found)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "data.path: no file or folder nowhere"),
        ("shards/*.csv", r"data.path: nothing matches shards/\*.csv"),
        ("shards/deep*/n*", r"data.path: nothing matches"),
        (("shards", "no*"), "data.path: nothing matches no"),
        ("shards/note*", r"data.path: shards/note\* holds no .txt or"),
        ("~nosuchuser/x", "~nosuchuser/x: there is no home folder ~nosuchuser"),
        ("x" * 5000, "data.path: x*: cannot be read"),
        ("a\0b", "NUL"),
    ],
)
def test_what_leads_nowhere_is_told(path, message, shards, monkeypatch):
    monkeypatch.chdir(shards)
    with pytest.raises(UserError, match=message):
        folder(path).open("train")
    with pytest.raises(UserError, match=message.replace("data.path", "data.validation")):
        folder("shards", validation=path).open("train")


def test_a_user_that_is_not_there_is_told_for_every_path(shards):
    for setting in ("path", "validation", "data_dir"):
        with pytest.raises(UserError, match="~nosuchuser"):
            folder(**{"path": shards / "shards", setting: "~nosuchuser/x"}).open("train")
    for split in ("train", "validation"):
        with pytest.raises(UserError, match="~nosuchuser"):
            Memmap(**{split: "~nosuchuser/x"}).open(split)


def test_home_is_expanded(shards, monkeypatch):
    monkeypatch.setenv("HOME", str(shards))
    assert documents_of("~/other") == ["3"]
    assert documents_of("~/oth*/*.parquet") == ["3"]


def test_a_name_that_exists_is_no_glob(tmp_path):
    for name in ("a[1].jsonl", "a1.jsonl", "b*", "b2"):
        (tmp_path / name).mkdir() if "." not in name else None
        write(tmp_path / name / "x.jsonl" if "." not in name else tmp_path / name, [name])
    assert documents_of(f"{tmp_path}/a[1].jsonl") == ["a[1].jsonl"]
    assert documents_of(f"{tmp_path}/b*") == ["b*"]
    assert documents_of(f"{tmp_path}/a*") == ["a1.jsonl", "a[1].jsonl"]


def test_links_to_one_file(shards):
    os.symlink(shards / "shards" / "0.jsonl.zst", shards / "link.jsonl.zst")
    dataset = folder(shards, validation=str(shards / "link.jsonl.zst"))
    assert list(dataset.documents("train")) == ["3", "1", "2"]  # neither name of it


# Validation


@pytest.mark.parametrize("validation", ["val", "val/*.jsonl", ("val/v.jsonl", "elsewhere")])
def test_validation_below_the_path_is_not_trained_on(validation, tmp_path, monkeypatch, capsys):
    """data.path=DATA data.validation=DATA/val"""
    monkeypatch.chdir(tmp_path)
    for name in ("data/val", "data/more", "elsewhere"):
        Path(name).mkdir(parents=True)
    write(Path("data/a.jsonl"), ["train " * 9] * 5)
    write(Path("data/more/b.parquet"), ["train too " * 9])
    write(Path("data/val/v.jsonl"), ["validation " * 9] * 3)
    write(Path("elsewhere/w.jsonl"), ["validation " * 9] * 2)
    places = (validation,) if isinstance(validation, str) else validation
    places = tuple(p if p == "elsewhere" else f"data/{p}" for p in places)
    dataset = folder("data", validation=places)
    assert set(dataset.documents("train")) == {"train " * 9, "train too " * 9}
    assert set(dataset.documents("validation")) == {"validation " * 9}
    dataset.open("train")
    message = capsys.readouterr().err
    assert "1 files of data.validation (first: data/val/v.jsonl)" in message
    tally = Tally()
    assert len(list(dataset.tallied("train", tally))) == 6
    assert tally.files == 2


def test_which_files_validate_is_part_of_what_is_prepared(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.jsonl", [f"text {name} " * 9] * 5)
    a, b, c = (f"{tmp_path}/{name}.jsonl" for name in "abc")
    assert len(folder((a, b), validation=c).open("train")) > 0
    message = folder(a, validation=(b, c)).open("train").fingerprint["content"]
    assert message["documents"] == 5


def test_a_path_that_is_all_validation(tmp_path):
    write(tmp_path / "a.jsonl", ["text"] * 9)
    with pytest.raises(UserError, match=r"train split is empty; data\.path must name") as raised:
        folder(tmp_path, validation=str(tmp_path)).open("train")
    assert "1 files of data.validation" in str(raised.value)


def test_an_empty_validation_set_of_its_own(tmp_path):
    write(tmp_path / "a.jsonl", ["text"] * 9)
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(UserError, match=r"validation split is empty; data\.validation must name"):
        folder(tmp_path / "a.jsonl", validation=str(tmp_path / "b.jsonl")).open("train")


def test_prepared_data_below_the_path_is_no_text(tmp_path):
    write(tmp_path / "a.jsonl", [f"text {i}\n" * 9 for i in range(300)])
    dataset = folder(tmp_path, data_dir=str(tmp_path / "data"))
    before = dataset.open("train").fingerprint
    (folder_of_tokens,) = dataset.stored_in()
    assert (folder_of_tokens / "meta.json").is_file()
    assert dataset.stored_in() == (folder_of_tokens,)
    assert dataset.open("train").fingerprint == before


# Settings


def test_paths_on_the_command_line(shards, monkeypatch):
    monkeypatch.chdir(shards)
    given = {"path": "other, shards/0*", "validation": "shards/[12]*"}
    dataset = apply_overrides(Folder(path="x"), given)
    assert dataset == Folder(path=("other", "shards/0*"), validation="shards/[12]*")
    assert list(dataset.documents("train")) == ["3", "0"]
    parts = ("a = folder(path=(other, shards/0*)): 1", "b = folder(path='x, y'): 1")
    paths = [part.dataset.path for part in Mixture(parts=parts).parsed()]
    assert paths == [("other", "shards/0*"), "x, y"]
    again = [argument for argument in prepare_command(dataset).split("'") if "path" in argument]
    assert again[-1] == "--dataset.path=other, shards/0*"


def test_the_command_that_prepares_names_one_path_with_a_comma():
    dataset = Folder(path="x, y", validation=("a, b", "c"))
    command = prepare_command(dataset)
    chosen = dict(
        text.removeprefix("--dataset.").split("=", 1)
        for text in shlex.split(command)
        if text.startswith("--dataset.")
    )
    assert apply_overrides(Folder(path="z"), chosen) == dataset


def test_rules_of_paths():
    def broken(**options) -> list[str]:
        return [problem.path for problem in check(Folder(**options))]

    assert broken(path=("a", "b"), validation="c") == []
    for none in ("", (), ("a", "")):
        assert broken(path=none) == ["path"]
        assert broken(path="a", validation=none) == ["validation"]
    assert broken(path=3) == ["path"]
    assert broken(path="a", on_error="warn") == ["on_error"]


def test_the_door_takes_several_paths(shards, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(shards)
    for i in range(3):
        write(Path(f"{i}.csv"), [f"text {i} {j} " * 9 for j in range(90)])
    argv = ["--dataset=folder", "--dataset.path=0.csv,[12].csv", f"--dataset.data_dir={tmp_path}"]
    argv = prepare.as_overrides(argv)
    options = {"usage": prepare.USAGE, "flags": prepare.FLAGS, "overrides": True}
    assert run_command(prepare.main, argv=argv, **options) == 0
    assert "read: 3 files, 270 documents" in capsys.readouterr().out


# Ids


def test_ids_of_several_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = np.arange(1000, dtype=np.uint16) % 50
    for i, part in enumerate(np.split(whole, [100, 137, 137])):
        part.tofile(f"{i}.bin")
    np.save("whole.npy", whole)
    options = {"sequence_length": 64, "tokenizer": Memmap().tokenizer}
    expected = Memmap(train="whole.npy", **options).open("train")
    for train in ("[0-3].bin", ("0.bin", "1.bin", "2.bin", "3.bin")):
        rows = Memmap(train=train, **options).open("train")
        assert len(rows) == len(expected) == 16
        for i in range(16):
            np.testing.assert_array_equal(rows[i]["tokens"], expected[i]["tokens"])
        content = rows.fingerprint["content"]
        assert (content["tokens"], len(content["files"])) == (1000, 4)
        assert json.loads(json.dumps(content)) == content
    with pytest.raises(UserError, match=r"hold ids of one dtype, not uint16 in .*, int64 in"):
        np.save("z.npy", whole.astype(np.int64))
        Memmap(train=("whole.npy", "z.npy"), **options).open("train")
    Path("z.npy").unlink()
    rows = Memmap(train=str(tmp_path), **options).open("train")  # .bin and .npy of the folder
    assert rows.fingerprint["content"]["tokens"] == 2000
