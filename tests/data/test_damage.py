"""What is damaged is named with its place, or passed over and counted; what was read is told."""

from __future__ import annotations

import gzip
import json
import random
import re
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_jax.config.errors import UserError
from moe_jax.data.faults import Tally
from moe_jax.data.mixture import Mixture
from moe_jax.data.packing import write_stream
from moe_jax.data.prepare import prepare
from moe_jax.data.progress import Silent
from moe_jax.data.tokenizer import ByteTokenizer
from moe_jax.parallel import hosts
from tests.data.corpora import PACKERS, documents_of, folder, table, write, write_parquet

MANY = [f"{i} {random.Random(i).random()} " * (1 + i % 4) for i in range(8000)]


def cut_off(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def binary_column(*values: bytes) -> pa.Table:
    """A column of texts whose bytes nobody has looked at."""
    return pa.table({"text": pa.array(values, pa.binary()).view(pa.string())})


def flipped_page(file: Path) -> bytes:
    """A .parquet of three row groups, the second of which does not hold what its checksum says."""
    texts = ["first " * 9, "second " * 9, "third " * 9]
    pq.write_table(
        table(texts), file, row_group_size=1, compression="none", write_page_checksum=True
    )
    return file.read_bytes().replace(b"second second", b"second secomd", 1)


def torn_batch(file: Path) -> bytes:
    """An Arrow file of three batches; in the second one text begins behind its own end."""
    schema = pa.schema([("text", pa.string())])
    with pa.ipc.new_file(file, schema) as out:
        for part in (["a" * 5], ["b" * 777, "b" * 23], ["c" * 9]):
            out.write_batch(pa.record_batch([pa.array(part)], schema=schema))
    before, offsets, after = file.read_bytes().rpartition(struct.pack("<iii", 0, 777, 800))
    assert offsets
    return before + struct.pack("<iii", 0, 900, 800) + after


# (file, its bytes, the message after the file's name, the documents that are left, the reason)
LINES = b'{"text": "a"}\n%s\n{"text": "b"}\n'
CASES = {
    "torn line": ("a.jsonl", LINES % b'{"text": "x', "line 2: not JSON", 2, "broken JSON"),
    "no object": ("a.jsonl", LINES % b"[1]", "line 2: no text 'text'", 2, "no such field"),
    "no field": (
        "a.ndjson",
        LINES % b'{"body": 1}',
        "line 2: no text.*has body",
        2,
        "no such field",
    ),
    "a number": (
        "a.jsonl",
        LINES % b'{"text": 3}',
        "no text.*int",
        2,
        "field without text",
    ),
    "a list": ("a.json", LINES % b'{"text": []}', "no text.*list", 2, "field without text"),
    "latin 1": ("a.jsonl", LINES % b'{"text": "\xfc"}', "line 2: not UTF-8", 2, "not UTF-8"),
    "zeros": ("a.jsonl", LINES % (b"\0" * 50), "line 2: holds a NUL", 2, "NUL bytes"),
    "deep": ("a.jsonl", LINES % (b"[" * 100_000), "line 2: not JSON.*deep", 2, "broken JSON"),
    "array: element": (
        "a.json",
        b'[{"text": "a"}, {"body": 1}, 3, {"text": "b"}]',
        "element 2: no text",
        2,
        "no such field",
    ),
    "array: broken": (
        "a.json",
        b'[{"text": "a"}, {"text" "b"}, {"text": "c"}]',
        "element 2: not JSON",
        1,
        "broken JSON",
    ),
    "array: no end": ("a.json", b'[{"text": "a"},', "element 2: not JSON", 1, "broken JSON"),
    "array: more": ("a.json", b'[{"text": "a"}] x', "element 2: not JSON", 1, "broken JSON"),
    "array: deep": (
        "a.json",
        b'[{"text": "a"}, ' + b"[" * 200_000,
        "element 2: not JSON.*deep",
        1,
        "broken JSON",
    ),
    "array: latin 1": ("a.json", b'[{"text": "\xfc"}]', "not UTF-8", 0, "not UTF-8"),
    "csv: width": (
        "a.csv",
        b"text,id\na,1\nb\nc,2,3\nd,4\n",
        "line 3: has 1 fields, the first row 2",
        2,
        "another number of fields",
    ),
    "csv: quotes": ("a.csv", b'text\na\n"b"c\nd\n', "line 3: not a row", 2, "broken rows"),
    "csv: open": ("a.csv", b'text\na\n"b\nc\n', "line 4: not a row|line 3", 1, "broken rows"),
    "csv: field": ("a.tsv", b"body\tid\na\t1\n", "line 1: no text.*body, id", 0, "no such field"),
    "csv: twice": ("a.csv", b"text,text\na,b\n", "line 1: no text", 0, "no such field"),
    "csv: latin 1": ("a.csv", b"text\na\n\xfc\n", "line 3: not UTF-8", 1, "not UTF-8"),
    "csv: zeros": ("a.csv", b"text\na\n\0\0\n", "line 3: holds a NUL", 1, "NUL bytes"),
    "text: latin 1": ("a.txt", b"a\xfc", "not UTF-8", 0, "not UTF-8"),
    "text: zeros": ("a.txt", b"a\0", "holds a NUL byte", 0, "NUL bytes"),
    "text: utf-16": ("a.txt", "ab".encode("utf-16"), "not UTF-8", 0, "not UTF-8"),
    "no gzip": ("a.jsonl.gz", b'{"text": "a"}', "cannot be read.*gzip", 0, "damaged files"),
    "no zstd": ("a.jsonl.zst", b'{"text": "a"}', "cannot be read.*zstd", 0, "damaged files"),
    "no parquet": ("a.parquet", b'{"text": "a"}', "not Parquet", 0, "damaged files"),
    "no arrow": ("a.arrow", b'{"text": "a"}', "not Arrow IPC", 0, "damaged files"),
}


def passed_over(file: Path) -> dict[str, list]:
    """What reading a file with on_error=skip counts, and the documents."""
    dataset, tally = folder(file, validation=str(file), on_error="skip"), Tally()
    list(dataset.tallied("validation", tally))
    return tally


@pytest.mark.parametrize("case", CASES)
def test_damage_is_named_with_its_place_or_passed_over(case, tmp_path):
    name, content, message, left, reason = CASES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / name)) + r"(, |: ).*") as raised:
        documents_of(tmp_path / name)
    assert re.search(message, str(raised.value)), raised.value
    assert "data.on_error=skip" in str(raised.value)
    tally = passed_over(tmp_path / name)
    assert tally.documents == left
    assert reason in tally.passed_over
    count, first = tally.passed_over[reason]
    assert count >= 1
    assert str(raised.value).startswith(first)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_packed_file_that_is_cut_off(suffix, packing, tmp_path):
    """Its whole lines count, and one of them may be torn."""
    file = write(tmp_path / f"a{suffix}{packing}", MANY)
    file.write_bytes(cut_off(file.read_bytes()))
    with pytest.raises(UserError, match=r"after [\d,]+ documents: cannot be read \(.* end"):
        documents_of(file)
    tally = passed_over(file)
    assert 100 < tally.documents < len(MANY)
    assert tally.passed_over["damaged files"][0] == 1
    text = tmp_path / f"a.txt{packing}"
    text.write_bytes(cut_off(PACKERS[packing]("".join(MANY).encode())))
    assert passed_over(text).documents == 0  # a document is whole or none


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_columns_that_are_cut_off(suffix, tmp_path):
    file = write(tmp_path / f"a{suffix}", MANY)
    file.write_bytes(cut_off(file.read_bytes()))
    with pytest.raises(UserError, match=re.escape(str(file)) + ": (not P|not A)|: cannot"):
        documents_of(file)
    tally = passed_over(file)
    assert tally.passed_over["damaged files"][0] == 1
    assert (tally.documents > 1000) == (suffix == ".arrow")  # the others end in their index


def test_a_broken_row_group_is_named_and_the_others_are_read(tmp_path):
    file = tmp_path / "a.parquet"
    file.write_bytes(flipped_page(file))
    with pytest.raises(UserError, match=r"a\.parquet, row group 2: cannot be read"):
        documents_of(file)
    assert documents_of(file, on_error="skip") == ["first " * 9, "third " * 9]


def test_a_broken_batch_is_named_and_the_others_are_read(tmp_path):
    file = tmp_path / "a.arrow"
    file.write_bytes(torn_batch(file))
    with pytest.raises(UserError, match=r"a\.arrow, batch 2: cannot be read"):
        documents_of(file)
    assert documents_of(file, on_error="skip") == ["a" * 5, "c" * 9]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_text_in_columns_that_is_not_utf8(suffix, tmp_path):
    whole = pa.concat_tables([binary_column(b"a", b"\xfc"), binary_column(b"b")])
    if suffix == ".parquet":
        pq.write_table(whole, tmp_path / "a.parquet", row_group_size=2)
    else:
        with pa.ipc.new_stream(tmp_path / "a.arrow", whole.schema) as out:
            out.write_table(whole)
    with pytest.raises(UserError, match="row 2: not UTF-8"):
        documents_of(tmp_path)
    assert documents_of(tmp_path, on_error="skip") == ["a", "b"]


def test_nothing_to_read_is_no_damage(tmp_path):
    """Empty files, empty texts and nulls are passed over, and told."""
    for name in ("a.txt", "b.jsonl", "c.csv", "d.json", "e.parquet", "f.arrow", "g.jsonl.zst"):
        (tmp_path / name).touch()
    (tmp_path / "h.csv").write_text("text\n")
    (tmp_path / "i.jsonl").write_text('{"text": ""}\n\n{"text": null}\n{"text": "some"}\n')
    (tmp_path / "j.txt.gz").write_bytes(gzip.compress(b""))
    write_parquet(tmp_path / "k.parquet", [])
    pq.write_table(pa.table({"text": pa.array([None, "", "more"])}), tmp_path / "l.parquet")
    tally = passed_over(tmp_path)
    assert (tally.files, tally.documents, tally.bytes) == (12, 2, 8)
    assert tally.passed_over == {
        "empty files": [9, str(tmp_path / "a.txt")],
        "empty texts": [5, f"{tmp_path / 'i.jsonl'}, line 1"],
    }


def test_a_file_that_cannot_be_read_or_is_gone(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    dataset = folder(tmp_path, validation=str(tmp_path))
    reading = dataset.documents("validation")
    (tmp_path / "a.jsonl").rename(tmp_path / "b")
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"data.validation: .* holds no \.txt"):
        next(reading)
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.parquet").mkdir()  # as Spark writes, with its files in it
    write_parquet(tmp_path / "a.parquet" / "part-0.parquet", ["deep"])
    assert documents_of(tmp_path) == ["deep"]
    assert documents_of(f"{tmp_path}/*.parquet") == ["deep"]


# What was read


def some_of_everything(path: Path) -> int:
    """Files with 260 texts, and what is wrong; the bytes of the texts."""
    path.mkdir()
    texts = [f"text {i}, Ü" * 9 for i in range(260)]
    write(path / "a.jsonl", texts[:100])
    write(path / "b.parquet", texts[100:])
    (path / "c.jsonl").write_text('{"text": ""}\n{"text": \n{"text":\n{"id": 3}\n')
    (path / "d.txt").touch()
    return sum(len(text.encode()) for text in texts)


def test_what_was_read_is_told_in_two_lines(tmp_path, capsys):
    size = some_of_everything(tmp_path / "texts")
    dataset = folder(tmp_path / "texts", on_error="skip", data_dir=str(tmp_path / "data"))
    rows = dataset.open("train")
    message = capsys.readouterr().err.splitlines()
    splits = [dataset.open(split).fingerprint["content"] for split in ("train", "validation")]
    c = tmp_path / "texts" / "c.jsonl"
    assert message == [
        f"Preparing {tmp_path / 'texts'} in {tmp_path / 'data'} ...",
        f"  read: 4 files, 260 documents, {size:,} bytes of text; passed over: "
        f"1 empty texts (first: {c}, line 1); "
        f"2 broken JSON (first: {c}, line 2: not JSON (Expecting value, at character 11)); "
        f"1 no such field (first: {c}, line 4: no text 'text' (data.field); it has id); "
        f"1 empty files (first: {tmp_path / 'texts' / 'd.txt'})",
        f"  splits: train {splits[0]['documents']} documents, {splits[0]['tokens']:,} tokens; "
        f"validation {splits[1]['documents']} documents, {splits[1]['tokens']:,} tokens",
    ]
    assert splits[0]["documents"] + splits[1]["documents"] == 260
    assert splits[0]["bytes"] + splits[1]["bytes"] == size
    # A second run finds it, and the numbers in short.
    short = f"4 files, 260 documents, {size:,} bytes of text; 5 passed over"
    assert rows.read == dataset.open("validation").read == short
    assert capsys.readouterr().err == ""
    assert prepare(dataset, Silent())[1:3] == [line.strip() for line in message[1:]]
    meta = json.loads((dataset.stored_in()[0] / "meta.json").read_text())
    assert meta["read"]["passed_over"]["broken JSON"][0] == 2
    parts = (f"a = folder(path={tmp_path / 'texts'}, on_error=skip): 1", "planted: 1")
    mixture = Mixture(sequence_length=16, parts=parts[:1], data_dir=str(tmp_path / "data"))
    assert mixture.open("train").read == f"a {short}"
    assert mixture.summary()[0].startswith("a: read: 4 files")


def test_another_process_than_the_first_says_nothing(tmp_path, capsys, monkeypatch):
    some_of_everything(tmp_path / "texts")
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    folder(tmp_path / "texts", on_error="skip").open("train")
    assert capsys.readouterr() == ("", "")


def test_stopping_leaves_nothing_behind(tmp_path):
    some_of_everything(tmp_path / "texts")
    dataset = folder(tmp_path / "texts", data_dir=str(tmp_path / "data"))
    with pytest.raises(UserError, match=r"c\.jsonl, line 2: not JSON"):
        dataset.open("train")
    names = [file.name for file in (tmp_path / "data" / "tokens").iterdir()]
    assert [name for name in names if not name.endswith(".lock")] == []
    skipping = folder(tmp_path / "texts", data_dir=str(tmp_path / "data"), on_error="skip")
    assert len(skipping.open("train")) > 0
    with pytest.raises(UserError, match="not JSON"):  # what skipping has made is not taken
        dataset.open("train")


def test_where_all_is_passed_over_it_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "a"}\n' * 3)
    with pytest.raises(UserError, match="train split is empty") as raised:
        folder(tmp_path, on_error="skip").open("train")
    assert "3 no such field" in str(raised.value) and "it has body" in str(raised.value)


def test_older_prepared_data_is_told_by_its_splits(tmp_path):
    dataset = folder(write(tmp_path / "a.jsonl", MANY), data_dir=str(tmp_path))
    rows = dataset.open("train")
    assert rows.read.startswith("1 files, 8,000 documents")
    meta = dataset.stored_in()[0] / "meta.json"
    content = json.loads(meta.read_text())
    del content["read"]
    meta.write_text(json.dumps(content))
    assert dataset.open("train").read == rows.read.removeprefix("1 files, ")


def test_the_bytes_that_are_counted_are_those_that_are_written(tmp_path):
    texts, tally = ["a", "Ü🙂", "x\r\n"], Tally()
    for text in texts:
        tally.add(text)
    info = write_stream(tmp_path / "x", texts, ByteTokenizer())
    assert (tally.documents, tally.bytes) == (info.documents, info.bytes) == (3, 10)


def test_a_data_dir_that_cannot_be_written(tmp_path):
    write(tmp_path / "a.jsonl", MANY)
    (tmp_path / "file").touch()
    for data_dir in (f"{tmp_path}/file/below", "/proc/x"):
        with pytest.raises(UserError, match=r"cannot be written.*data\.data_dir"):
            folder(tmp_path, data_dir=data_dir).open("train")
