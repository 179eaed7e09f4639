"""The formats of files: the same texts from each, a part at a time, and what a package is for."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import tracemalloc

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard

from moe_jax.config.errors import UserError
from moe_jax.data.readers import READERS, read_file
from tests.data.corpora import (
    COLUMNS,
    LINES,
    PACKERS,
    TEXTS,
    documents_of,
    folder,
    table,
    write,
    write_array,
    write_ipc_file,
)

PACKED = [suffix + packing for suffix in LINES for packing in PACKERS]
CAPITALS = [".JSONL", ".Json.GZ", ".CSV.Zst", ".PARQUET"]
SPLITS = ("train", "validation")


@pytest.mark.parametrize("suffix", [*PACKED, *COLUMNS, *CAPITALS])
def test_every_format_gives_the_same_texts(suffix, tmp_path):
    write(tmp_path / f"some{suffix}", TEXTS)
    assert documents_of(tmp_path) == TEXTS
    assert documents_of(tmp_path / f"some{suffix}") == TEXTS
    with pytest.raises(UserError, match=r"no text 'body' \(data.field\); it has id, text"):
        documents_of(tmp_path, field="body")


@pytest.mark.parametrize("packing", PACKERS)
def test_a_text_is_one_document(packing, tmp_path):
    text = "first\n\nsecond\r\n\r"
    (tmp_path / f"a.txt{packing}").write_bytes(PACKERS[packing](b"\xef\xbb\xbf" + text.encode()))
    assert documents_of(tmp_path) == [text]


@pytest.mark.parametrize("packing", PACKERS)
def test_json_may_be_one_array(packing, tmp_path):
    file = tmp_path / "a.json"
    write_array(file, TEXTS)
    packed = tmp_path / f"b.json{packing}"
    packed.write_bytes(PACKERS[packing](b" \n" + file.read_bytes() + b"\n"))
    assert documents_of(packed) == TEXTS
    for content in ("[]", " [ ] \n", ""):
        file.write_text(content)
        assert documents_of(file) == []


def test_values_of_an_array_that_the_window_cuts(tmp_path):
    texts = ["a" * (60_000 + i) + '\\"\u00fc' for i in range(12)] + ["b" * 300_000, "c"]
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"text": text, "n": [1.5e3, True, None]} for text in texts]))
    assert documents_of(file) == texts


def test_another_suffix_is_a_text(tmp_path):
    (tmp_path / "a.md").write_text('{"text": "a"}')
    assert documents_of(tmp_path / "a.md") == ['{"text": "a"}']
    assert documents_of(tmp_path, suffixes=(".MD",)) == ['{"text": "a"}']
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(b"b"))
    assert documents_of(tmp_path, suffixes=(".md",)) == ['{"text": "a"}', "b"]


def test_many_frames_and_members(tmp_path):
    """What `cat a.gz b.gz` gives, and what parallel compressors write."""
    first, second = b'{"text": "first"}\n', b'{"text": "second"}\n' * 5000
    for name, pack in (("a.jsonl.gz", PACKERS[".gz"]), ("a.jsonl.zst", PACKERS[".zst"])):
        (tmp_path / name).write_bytes(pack(first) + pack(b"") + pack(second))
        assert documents_of(tmp_path / name) == ["first"] + ["second"] * 5000
    long = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=long).compressobj()  # zstd --long=31
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress(first) + packer.flush())
    assert documents_of(tmp_path / "a.jsonl.zst") == ["first"]


NESTED = [
    {"meta": {"text": "a", "n": 1}, "x": 1},
    {"meta": {"text": None, "n": 2}, "x": 2},
    {"meta": None, "x": 3},
    {"meta": {"text": "b", "n": 3}, "x": 4},
]


def write_nested(file, rows) -> None:
    if file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        with pa.ipc.new_file(file, pa.Table.from_pylist(rows).schema) as out:
            out.write_table(pa.Table.from_pylist(rows))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".arrow"])
def test_a_dotted_path_into_objects(suffix, tmp_path):
    """Nulls on the way are empty texts; a key of the whole name comes first."""
    file = tmp_path / f"a{suffix}"
    write_nested(file, NESTED)
    assert documents_of(file, field="meta.text") == ["a", "b"]
    for field in ("meta.body", "meta.text.deep", "met"):
        with pytest.raises(UserError, match=f"no text '{field}'"):
            documents_of(file, field=field)
    for field in ("meta", "meta.n"):
        with pytest.raises(UserError, match=f"no text '{field}'.*is of type"):
            documents_of(file, field=field)
    write_nested(file, [{**row, "meta.text": "whole"} for row in NESTED])
    assert documents_of(file, field="meta.text") == ["whole"] * 4


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_every_type_of_text_in_columns(suffix, kind, tmp_path):
    texts = ["a", None, "Ü" * 40, ""]
    values = pa.array([text and text.encode() for text in texts], pa.binary())
    column = values.cast(kind) if "binary" in str(kind) else values.cast(pa.string()).cast(kind)
    whole = pa.table({"text": column, "none": pa.nulls(4)})
    file = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(whole, file)
    else:
        with pa.ipc.new_file(file, whole.schema) as out:
            out.write_table(whole)
    assert documents_of(file) == ["a", "Ü" * 40]
    assert documents_of(file, field="none") == []


def test_views_of_text_as_polars_writes_them(tmp_path):
    whole = table(TEXTS)
    whole = whole.set_column(1, "text", whole["text"].cast(pa.string_view()))
    with pa.ipc.new_file(tmp_path / "a.arrow", whole.schema) as out:
        out.write_table(whole)
    assert documents_of(tmp_path) == TEXTS


def test_line_ends_are_kept_in_every_format(tmp_path):
    """30,000 bytes on disk are 30,000 bytes of text."""
    text = "a\r\nb\rc\n" * 20
    for suffix in (*LINES, *COLUMNS):
        assert documents_of(write(tmp_path / f"all{suffix}", [text] * 3)) == [text] * 3
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.txt").write_bytes(text.encode() * 50)
    dataset = folder(tmp_path / "only")
    sizes = [dataset.open(split).fingerprint["content"]["bytes"] for split in SPLITS]
    assert sum(sizes) == len(text) * 50
    assert "".join(part for split in SPLITS for part in dataset.documents(split)) == text * 50


def test_lines_of_json_may_end_as_they_like(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\r\n{"text": "b"}\r{"text": "c\\r\\n"}')
    assert documents_of(tmp_path) == ["a", "b", "c\r\n"]


def test_a_data_set_that_datasets_has_saved(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write(tmp_path / split / "data-00000-of-00001.arrow", [f"{split} {i}" for i in range(5)])
        (tmp_path / split / "dataset_info.json").write_text('{"features": {}}')
        (tmp_path / split / "state.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    dataset = folder(tmp_path / "train", validation=str(tmp_path / "test"))
    assert list(dataset.documents("train")) == [f"train {i}" for i in range(5)]
    assert list(dataset.documents("validation")) == [f"test {i}" for i in range(5)]
    assert len(documents_of(tmp_path)) == 10


def test_feather_of_both_versions(tmp_path):
    pyarrow.feather.write_feather(table(TEXTS), str(tmp_path / "a.feather"))
    assert documents_of(tmp_path) == TEXTS
    (tmp_path / "a.feather").write_bytes(b"FEA1" + bytes(40))
    with pytest.raises(UserError, match="Feather of version 1"):
        documents_of(tmp_path)


def test_a_mixed_folder(tmp_path):
    for number, suffix in enumerate([*LINES, *COLUMNS]):
        write(tmp_path / f"{number}{suffix}", [f"{suffix} {text}" for text in TEXTS])
    found = documents_of(tmp_path)
    assert found == [f"{suffix} {text}" for suffix in (*LINES, *COLUMNS) for text in TEXTS]
    assert set(LINES) | set(COLUMNS) | {".txt"} == set(READERS)


# A part at a time

BIG = 16 << 20


def peak_of_reading(file) -> int:
    """Bytes that Python holds at most while the texts of a file go by."""
    tracemalloc.start()
    try:
        assert sum(len(item) for _, item in read_file(file, "text")) > 0.99 * BIG
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", PACKED)
def test_a_large_file_is_never_held(suffix, tmp_path):
    """16 MiB of text in documents of 4 kB take less than 3 MiB at a time."""
    file = tmp_path / f"big{suffix}"
    write(file, ["word " * 800] * (BIG // 4000))
    assert peak_of_reading(file) < 3 << 20


def test_a_large_array_of_json_is_never_held(tmp_path):
    file = tmp_path / "big.json"
    write_array(file, ["word " * 800] * (BIG // 4000))
    assert peak_of_reading(file) < 3 << 20


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_columns_are_read_in_parts_and_alone(suffix, tmp_path, monkeypatch):
    """Four row groups, or batches, of 8 MiB, beside a column as large that is not wanted."""
    texts = [f"{i} " + "word " * 800 for i in range(8000)]
    whole = pa.table({"other": texts, "text": texts})
    file = tmp_path / f"big{suffix}"
    if suffix == ".parquet":
        pq.write_table(whole, file, row_group_size=2000, use_dictionary=False)
    elif suffix == ".feather":
        pyarrow.feather.write_feather(whole, str(file), chunksize=2000, compression="zstd")
    else:
        with pa.ipc.new_stream(file, whole.schema) as out:
            out.write_table(whole, max_chunksize=2000)
    del whole
    before, peak = pa.total_allocated_bytes(), 0
    for count, (_, text) in enumerate(read_file(file, "text")):
        assert text == texts[count]
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert count == 7999
    assert peak < 12 << 20  # of 64 MiB


@pytest.mark.parametrize(
    ("package", "suffix"),
    [("pyarrow", ".parquet"), ("pyarrow", ".arrow"), ("zstandard", ".jsonl.zst")],
)
def test_a_missing_package_is_told(package, suffix, tmp_path, monkeypatch):
    file = write(tmp_path / f"a{suffix}", TEXTS)
    write(tmp_path / "b.jsonl.gz", TEXTS)
    monkeypatch.setitem(sys.modules, package, None)
    for on_error in ("stop", "skip"):
        with pytest.raises(UserError) as raised:
            documents_of(file, on_error=on_error)
        assert raised.value.exit_code == 2
        assert (
            str(raised.value) == f'{file}: reading it needs {package}: pip install "moe_jax[data]"'
        )
    assert documents_of(tmp_path / "b.jsonl.gz") == TEXTS


def test_a_table_keeps_long_fields_and_quotes(tmp_path):
    long = 'he said "a, b"\n' * 20_000  # longer than the csv module takes by itself
    with (tmp_path / "a.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["text"], [long], ["x"]])
    assert documents_of(tmp_path) == [long, "x"]


def test_ipc_is_told_apart_by_its_content(tmp_path):
    write_ipc_file(tmp_path / "a.arrow", TEXTS)
    assert documents_of(tmp_path) == TEXTS
