from __future__ import annotations

import json
import platform
import shutil
import sys

import pytest

from moe_jax.config.errors import UserError
from moe_jax.data.stdlib_text import StdlibText
from moe_jax.data.tfds_text import Tfds

NAME = f"stdlib_text/python_{platform.python_version()}"


def test_a_prepared_set_is_read_by_name(data_dir, tmp_path):
    dataset = Tfds(name=NAME, tfds_dir=str(data_dir), data_dir=str(tmp_path))
    same = StdlibText(data_dir=str(data_dir))
    for split in ("train", "validation"):
        mine, theirs = dataset.open(split).fingerprint, same.open(split).fingerprint
        assert mine["content"] == theirs["content"]
        assert (mine["kind"], theirs["kind"]) == ("tfds", "stdlib_text")
    assert "tensorflow" not in sys.modules


def test_splits_are_written_as_tfds_has_them(data_dir, tmp_path):
    dataset = Tfds(
        name=f"{NAME}:1.0.0",
        tfds_dir=str(data_dir),
        data_dir=str(tmp_path),
        feature="path",
        train="train[:10]+validation[:3]",
        validation="train[10:15]",
    )
    assert dataset.count("train") == 13
    train, validation = (list(dataset.documents(split)) for split in ("train", "validation"))
    assert len(train) == 13
    assert not set(train) & set(validation)
    assert all(path.endswith(".py") for path in train + validation)


@pytest.mark.parametrize("name", ["imdb_reviews", "imdb_reviews/plain_text:1.0.0", "no such set"])
def test_an_unprepared_set_is_told_with_the_command(name, tmp_path):
    with pytest.raises(UserError, match="is not prepared in") as caught:
        Tfds(name=name, data_dir=str(tmp_path)).open("train")
    assert f"tfds build {name} --file_format=array_record" in str(caught.value)


def test_a_missing_config_is_told(data_dir, tmp_path):
    shutil.copytree(data_dir / "stdlib_text", tmp_path / "with_configs")
    with pytest.raises(UserError, match=rf"holds {NAME.split('/')[1]}"):
        Tfds(name="with_configs", data_dir=str(tmp_path)).open("train")


def test_another_file_format_is_told(data_dir, tmp_path):
    shutil.copytree(data_dir / "stdlib_text", tmp_path / "stdlib_text")
    info = tmp_path / NAME / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="is there as tfrecord"):
        Tfds(name=NAME, data_dir=str(tmp_path)).open("train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature": "txt"}, r"no text named 'txt'.*its texts: package, path, text"),
        ({"validation": "test"}, "no split 'test'; it has train, validation"),
        ({"train": "train[:5"}, r"no split 'train\[:5'"),
    ],
)
def test_what_the_set_has_not_is_told(settings, message, data_dir, tmp_path):
    dataset = Tfds(name=NAME, tfds_dir=str(data_dir), data_dir=str(tmp_path), **settings)
    with pytest.raises(UserError, match=message):
        dataset.open("train")


def test_a_name_is_asked_for():
    assert [name for name, _ in Tfds().check()] == ["name"]
