from __future__ import annotations

import hashlib

import numpy as np
import pytest

from moe_jax.config.errors import UserError
from moe_jax.data.packing import packed_rows, segments_of, write_stream
from moe_jax.data.tokenizer import ByteTokenizer, IdTokenizer

TOKENIZER = ByteTokenizer()
BOS, EOS, PAD = TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id


def texts_of(seed: int, number: int = 23) -> list[str]:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 40, number)
    return ["".join(map(chr, random.integers(32, 500, length))) for length in lengths]


def pack(texts, path, sequence_length, split="train"):
    info = write_stream(path, texts, TOKENIZER)
    stream = np.fromfile(path, info.dtype)
    rows = packed_rows(
        stream,
        sequence_length=sequence_length,
        tokenizer=TOKENIZER,
        split=split,
        kind="test",
        content=info.describe(),
        source="test",
    )
    return info, rows


@pytest.mark.parametrize("sequence_length", [1, 2, 7, 64, 300])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_token_and_no_target_is_lost(sequence_length, split, tmp_path):
    texts = texts_of(sequence_length)
    info, rows = pack(texts, tmp_path / "stream", sequence_length, split)
    seen = [rows[i] for i in range(len(rows))]

    # Every token but the first of a document is the target of exactly one row.
    targets = sum(
        int(np.sum((r["segments"][1:] == r["segments"][:-1]) & (r["segments"][1:] > 0)))
        for r in seen
    )
    assert targets == info.tokens - info.documents
    assert info.tokens == sum(len(text.encode()) + 2 for text in texts)

    padded = [int((r["segments"] == 0).sum()) for r in seen]
    assert sum(padded) == max(padded) < sequence_length  # only one row, and not all of it

    if split == "train":  # else the rows are scattered
        names = ("tokens", "segments")
        whole = {n: np.concatenate([*(r[n][:-1] for r in seen), seen[-1][n][-1:]]) for n in names}
        stream = whole["tokens"][whole["segments"] > 0]
        documents = np.split(stream, np.flatnonzero(stream == EOS) + 1)
        assert [TOKENIZER.decode(document) for document in documents] == [*texts, ""]
        assert all(document[0] == BOS for document in documents[:-1])


def test_a_row_of_two_documents_and_padding(tmp_path):
    _, rows = pack(["ab", "", "cde"], tmp_path / "stream", 5)
    assert len(rows) == 2
    a, b, c, d, e = b"abcde"
    np.testing.assert_array_equal(rows[0]["tokens"], [BOS, a, b, EOS, BOS, c])
    np.testing.assert_array_equal(rows[0]["segments"], [1, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(rows[1]["tokens"], [c, d, e, EOS, PAD, PAD])
    np.testing.assert_array_equal(rows[1]["segments"], [1, 1, 1, 1, 0, 0])
    assert all(rows[0][name].dtype == np.int32 for name in ("tokens", "segments", "domain"))


def test_segments_where_the_first_token_ends_a_document():
    np.testing.assert_array_equal(segments_of(np.array([9, 1, 9, 9, 2]), 9), [1, 2, 2, 3, 4])
    np.testing.assert_array_equal(segments_of(np.array([9, 1]), None), [1, 1])


def test_the_file_is_what_is_described(tmp_path):
    texts = texts_of(0)
    advanced = []
    info = write_stream(tmp_path / "stream", iter([*texts, ""]), TOKENIZER, advanced.append)
    assert info.sha256 == hashlib.sha256((tmp_path / "stream").read_bytes()).hexdigest()
    assert info.documents == len(texts)
    assert info.bytes == sum(len(text.encode()) for text in texts)
    assert sum(advanced) == len(texts) + 1


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    ids = IdTokenizer(70_000, eos_id=69_999)
    info = write_stream(tmp_path / "stream", ["66000 1", "2"], ids)
    np.testing.assert_array_equal(
        np.fromfile(tmp_path / "stream", info.dtype), [66000, 1, 69_999, 2, 69_999]
    )


def test_validation_comes_scattered_and_whole(tmp_path):
    texts = [f"document {i:04}" for i in range(500)]
    _, train = pack(texts, tmp_path / "a", 15)
    _, validation = pack(texts, tmp_path / "b", 15, "validation")

    def content(rows):
        return [rows[i]["tokens"].tobytes() for i in range(len(rows))]

    in_order, scattered = content(train), content(validation)
    assert sorted(in_order) == sorted(scattered)
    places = np.array([in_order.index(row) for row in scattered])
    # The first rows are a sample of the whole: their mean place lies in the middle, within four
    # standard deviations of a mean of uniform places.
    n = 100
    assert abs(places[:n].mean() / len(places) - 0.5) < 4 / np.sqrt(12 * n)
    assert content(pack(texts, tmp_path / "c", 15, "validation")[1]) == scattered


def test_too_little_text_is_told(tmp_path):
    with pytest.raises(UserError, match="train split is empty"):
        pack(["", ""], tmp_path / "stream", 4)
    with pytest.raises(UserError, match=r"has 5 tokens in all.*sequence_length \+ 1 = 6"):
        pack(["abc"], tmp_path / "stream", 5)
    assert len(pack(["abc"], tmp_path / "stream", 4)[1]) == 1


def test_an_id_outside_the_vocabulary_is_told():
    stream = np.arange(300, dtype=np.uint16)
    rows = packed_rows(
        stream,
        sequence_length=100,
        tokenizer=TOKENIZER,
        split="train",
        kind="test",
        content={},
        source="stream.bin",
    )
    assert len(rows[1]["tokens"]) == 101
    with pytest.raises(UserError, match=r"stream\.bin: holds the id 299.* 0 \.\. 258"):
        rows[2]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            rows[index]
