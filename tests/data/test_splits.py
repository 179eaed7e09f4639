"""How a folder is split: many documents as ever, few and short ones inside, none into nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_jax.config.errors import UserError
from moe_jax.config.tree import to_json_dict
from moe_jax.data.folder import Folder, cut_of
from moe_jax.training.experiment import Experiment
from moe_jax.training.identity import config_changes
from tests.data.corpora import folder, write

# Of the text below, from the version before files were read in other formats.
BEFORE = {
    "train": (280, 12804, "214f525134bef1963556e7c1c61a7faf71425a33a544df5b4b6d5d3fb38cb947"),
    "validation": (21, 994, "d49cd7f47da48a71a1b187e8aaf992c555e99d262eb8efefd17973b121bb3b9a"),
}


def plain_text(path: Path) -> None:
    """301 documents in .txt and .jsonl."""
    (path / "deep").mkdir(parents=True)
    for i in range(60):
        where = path / "deep" if i % 2 else path
        text = f"text {i}\n" * (3 + i % 7) + "Über\u2028 the end"
        (where / f"{i:03d}.txt").write_text(text, "utf-8")
    lines = [
        json.dumps({"text": f"line {i}, é \r\n" + "word " * (i % 11), "id": i}) for i in range(240)
    ]
    (path / "all.jsonl").write_text("\n".join([*lines, "", lines[0]]) + "\n", "utf-8")


@pytest.mark.parametrize("split", BEFORE)
def test_runs_on_plain_text_go_on(split, tmp_path):
    """The fingerprint, to which a resumed run is held, is what it was."""
    plain_text(tmp_path / "texts")
    rows = folder(tmp_path / "texts").open(split)
    documents, tokens, sha256 = BEFORE[split]
    size = tokens - 2 * documents
    assert rows.fingerprint == {
        "kind": "folder",
        "split": split,
        "packing": "concatenate, split",
        "sequence_length": 16,
        "tokenizer": {"kind": "bytes", "vocab_size": 259},
        "content": {
            "documents": documents,
            "tokens": tokens,
            "bytes": size,
            "dtype": "uint16",
            "sha256": sha256,
        },
    }


def test_a_config_from_before_goes_on():
    """Its suffixes were two, and it did not know what to do on errors."""
    saved = to_json_dict(Experiment(data=Folder(path="a")))
    saved["data"]["suffixes"] = [".txt", ".jsonl"]
    del saved["data"]["on_error"]
    saved["model"]["vocab_size"] = 264
    now = Experiment(data=Folder(path=("b", "c"))).completed()
    assert config_changes(saved, now) == []


def test_what_an_older_version_prepared_is_not_taken(tmp_path):
    """Its split of few documents, and its line ends, are others: the key differs."""
    write(tmp_path / "a.jsonl", ["text"])
    dataset = folder(tmp_path)
    assert dataset.identity()["reading"] == 2
    assert "on_error" in dataset.identity()


SMALL = {
    "one line of 800 kB": ["0123456 " * 100_000 + "\n"],
    "one line of 800 kB without spaces": ["01234567" * 100_000 + "\n"],
    "150 lines": [f"a document of one line, number {i}\n" for i in range(150)],
    "30 texts of 12 lines": [f"line {i} of a text\n" * 12 for i in range(30)],
    "short ones and a long one": [f"short {i}\n" for i in range(99)] + ["a longer line\n" * 999],
    "windows": ["a line\r\n" * 12] * 30,
    "old macintosh": ["a line\r" * 12] * 30,
    "words": ["one two three"] * 9,
    "two letters": ["ab"] * 30,
    "ends in empty lines": ["some lines\n" * 11 + "the last\n\n\n"] * 20,
    "a long empty end": ["words " * 20 + "\n" * 10] * 30,
    "ideographs": ["日本語の文章はここにあります\n"] * 20,
}


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_every_short_text_is_cut_inside(suffix, case, tmp_path):
    texts = SMALL[case]
    write(tmp_path / f"a{suffix}", texts)
    dataset = folder(tmp_path)
    train, validation = (list(dataset.documents(split)) for split in ("train", "validation"))
    assert [a + b for a, b in zip(train, validation, strict=True)] == texts
    assert all(train) and all(validation)
    if case != "two letters":
        share = len("".join(validation)) / len("".join(texts))
        assert 0.02 < share < 0.15
    assert all(end.strip() for end in validation)
    if "line" in case and "800" not in case and case != "150 lines":
        assert all(a.endswith(("\n", "\r")) for a in train if len(a) > 60)
    assert dataset.open("train").fingerprint["content"]["documents"] == len(texts)


def test_a_cut_is_after_a_line_else_after_a_word():
    lines = "".join(f"line {i}\n" for i in range(200))
    at = int(len(lines) * 0.9)
    assert cut_of(lines, 0.1) == lines.index("\n", at) + 1
    assert cut_of("word " * 100, 0.1) % 5 == 0
    assert cut_of("x" * 100, 0.1) == 90
    assert [cut_of("x" * size, 0.05) for size in (1, 2, 3)] == [1, 1, 2]
    assert cut_of("x" * 3, 0.99) == 1
    twelve = "a line of text\n" * 12
    assert cut_of(twelve, 0.05) == len(twelve) * 11 // 12
    assert "\r" not in twelve and cut_of(twelve.replace("\n", "\r\n"), 0.05) % 16 == 0


def test_one_letter_each_cannot_be_split(tmp_path):
    write(tmp_path / "a.jsonl", ["a"] * 30)
    with pytest.raises(UserError, match="the validation split is empty; ") as raised:
        folder(tmp_path).open("train")
    assert "data.validation_fraction (now 0.05)" in str(raised.value)
    assert "data.validation=PATH" in str(raised.value)
    assert "read: 1 files, 30 documents, 30 bytes" in str(raised.value)


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_many_documents_on_one_side(fraction, tmp_path):
    write(tmp_path / "a.jsonl", [f"text {i}" for i in range(400)])
    empty, change = ("validation", "larger") if fraction < 0.5 else ("train", "smaller")
    message = rf"the {empty} split is empty; .*a {change} data\.validation_fraction"
    with pytest.raises(UserError, match=message):
        folder(tmp_path, validation_fraction=fraction).open("train")
    tokens = [*(tmp_path / "default_data" / "tokens").iterdir()]
    assert all(file.name.endswith(".lock") for file in tokens)


def test_too_little_for_a_row_names_settings(tmp_path):
    write(tmp_path / "a.jsonl", ["some text in a few words"] * 3)
    dataset = Folder(path=str(tmp_path), sequence_length=64)
    with pytest.raises(UserError, match=r"has 12 tokens.*validation_fraction.*data\.sequence_len"):
        dataset.open("validation")


def test_empty_texts_do_not_count_as_documents(tmp_path):
    """Three documents and 300 empty texts are few: each is cut."""
    write(tmp_path / "a.jsonl", ["one text\n" * 20, *[""] * 300, "another\n" * 20])
    dataset = folder(tmp_path)
    assert [len(list(dataset.documents(split))) for split in ("train", "validation")] == [2, 2]
