from __future__ import annotations

import json
import os

import pytest

from moe_jax.config.errors import UserError
from moe_jax.data.folder import Folder
from moe_jax.data.prepared import prepare_command


def folder(path, **options) -> Folder:
    return Folder(path=str(path), sequence_length=16, **options)


def documents_of(path, **options) -> list[str]:
    """All that a path holds."""
    return list(folder(path, validation=str(path), **options).documents("validation"))


def test_files_are_documents_in_the_order_of_their_paths(texts):
    found = documents_of(texts)
    assert [text[:6] for text in found] == ["Über a", "first", "second", "one\ntw"]
    assert found[2] == "second ü"
    assert documents_of(texts, suffixes=(".md",)) == ["not read"]
    assert documents_of(texts / "ignored.md") == ["not read"]


def test_few_documents_are_cut_at_a_line(texts):
    dataset = folder(texts, validation_fraction=0.1)
    train, validation = (list(dataset.documents(split)) for split in ("train", "validation"))
    whole = documents_of(texts)
    assert [a + b for a, b in zip(train, validation, strict=True)] == whole
    assert train[0].endswith("\n")
    assert 0.05 < len(validation[0]) / len(whole[0]) < 0.1  # it begins at a line
    assert len(dataset.open("train")) > len(dataset.open("validation")) > 0


def test_many_documents_are_split_by_their_hash(tmp_path):
    texts = [f"text {i}" for i in range(2000)]
    lines = [json.dumps({"body": text}) for text in [*texts, *texts[:50]]]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    dataset = folder(tmp_path / "all.jsonl", field="body", validation_fraction=0.2)
    train, validation = (list(dataset.documents(split)) for split in ("train", "validation"))
    assert len(train) + len(validation) == 2050
    assert set(train) | set(validation) == set(texts)
    assert not set(train) & set(validation)  # copies stay together
    # Four standard deviations of a binomial.
    assert abs(len(set(validation)) - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5


def test_a_changed_folder_is_tokenised_anew(texts):
    dataset = folder(texts)
    before = dataset.open("train").fingerprint
    assert dataset.open("train").fingerprint == before
    (texts / "a.txt").touch()  # the same content: prepared again, to the same tokens
    assert dataset.open("train").fingerprint == before
    (texts / "d.txt").write_text("new text, long enough")
    assert dataset.open("train").fingerprint["content"] != before["content"]
    (texts / "d.txt").unlink()
    assert dataset.open("train").fingerprint == before


def test_a_moved_folder_has_the_same_fingerprint(texts, tmp_path):
    before = folder(texts).open("validation").fingerprint
    os.rename(texts, tmp_path / "moved")
    assert folder(tmp_path / "moved").open("validation").fingerprint == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', r"bad\.jsonl, line 2: not JSON"),
        ('{"body": "a", "id": 1}\n', r"line 1: no text 'text' \(data\.field\); it has body, id"),
        ('["a"]\n', "line 1: no text 'text'.*no fields"),
        ('{"text": 3}\n', "line 1: no text 'text'"),
        (b'{"text": "\xff"}\n', "not UTF-8"),
    ],
)
def test_bad_lines_are_told(content, message, tmp_path):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "bad.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=message):
        folder(tmp_path).open("train")


def test_half_a_surrogate_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a \\ud800 b"}\n')
    assert documents_of(tmp_path) == ["a ? b"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "no file or folder"), ("empty", r"holds no \.txt or \.jsonl or .* file")],
)
def test_missing_text_is_told(name, message, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        folder(tmp_path / name).open("train")


def test_no_text_and_too_little_text_are_told(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match="train split is empty"):
        folder(tmp_path).open("train")
    (tmp_path / "a.txt").write_text("a few words only")
    with pytest.raises(UserError, match=r"validation split has .* tokens in all"):
        folder(tmp_path).open("validation")


def test_rules():
    def broken(**options) -> list[str]:
        return [name for name, _ in Folder(**options).check()]

    assert broken() == ["path"]
    assert broken(path="x") == []
    assert broken(path="x", validation_fraction=1.0) == ["validation_fraction"]
    assert broken(path="x", suffixes=("txt",)) == ["suffixes"]
    assert broken(path="x", sequence_length=0) == ["sequence_length"]


def test_the_command_that_prepares_says_what_differs():
    dataset = Folder(path="my texts", suffixes=(".txt", ".md"), sequence_length=99)
    assert prepare_command(dataset) == (
        "python -m moe_jax.data.prepare --dataset=folder "
        "'--dataset.path=my texts' '--dataset.suffixes=.txt, .md'"
    )
