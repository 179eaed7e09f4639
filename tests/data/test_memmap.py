from __future__ import annotations

import numpy as np
import pytest

from moe_jax.config.errors import UserError
from moe_jax.data import memmap
from moe_jax.data.memmap import BLOCK, BLOCKS, Memmap, sampled_sha256
from moe_jax.data.tokenizer import Bpe, Bytes, Ids, train_bpe

STREAM = np.array([5, 6, 7, 0, 8, 9, 0, 1, 2, 3, 4, 0], np.int64)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "int64"])
@pytest.mark.parametrize("suffix", ["npy", "bin"])
def test_a_stream_of_any_integers(dtype, suffix, tmp_path):
    path = tmp_path / f"tokens.{suffix}"
    if suffix == "npy":
        np.save(path, STREAM.astype(dtype))
    else:
        path.write_bytes(b"HEAD" * 2 + STREAM.astype(np.dtype(dtype).newbyteorder("<")).tobytes())
    dataset = Memmap(
        train=str(path),
        dtype="uint16" if suffix == "npy" else dtype,  # a .npy knows its own
        header_bytes=0 if suffix == "npy" else 8,
        sequence_length=4,
        tokenizer=Ids(vocab_size=10, eos_id=0),
    )
    rows = dataset.open("train")
    assert len(rows) == 3
    np.testing.assert_array_equal(rows[0]["tokens"], [5, 6, 7, 0, 8])
    np.testing.assert_array_equal(rows[0]["segments"], [1, 1, 1, 1, 2])
    np.testing.assert_array_equal(rows[2]["segments"], [1, 1, 1, 1, 0])
    assert rows[0]["tokens"].dtype == np.int32


def test_without_an_eos_the_stream_is_one_document(tmp_path):
    np.save(tmp_path / "tokens.npy", STREAM)
    rows = Memmap(train=str(tmp_path / "tokens.npy"), sequence_length=4).open("train")
    assert set(rows[0]["segments"]) == {1}
    assert rows.tokenizer.bytes_per_token_V.sum() == 0


def test_tokens_of_a_known_tokenizer(tmp_path):
    text = "a text of some length, twice " * 2
    bpe = train_bpe([text], 270)
    bpe.save(tmp_path)
    np.save(tmp_path / "bpe.npy", bpe.encode(text))
    (tmp_path / "raw.bin").write_bytes(text.encode())
    by_bpe = Memmap(
        train=str(tmp_path / "bpe.npy"),
        sequence_length=8,
        tokenizer=Bpe(file=str(tmp_path / "tokenizer.json")),
    )
    by_bytes = Memmap(
        train=str(tmp_path / "raw.bin"), dtype="uint8", sequence_length=8, tokenizer=Bytes()
    )
    for dataset in (by_bpe, by_bytes):
        rows = dataset.open("train")
        assert text.startswith(rows.tokenizer.decode(rows[0]["tokens"]))


def test_the_wrong_dtype_shows_in_the_ids(tmp_path):
    path = tmp_path / "tokens.bin"
    path.write_bytes(np.arange(100, dtype="<u2").tobytes())
    dataset = Memmap(
        train=str(path), dtype="uint32", sequence_length=8, tokenizer=Ids(vocab_size=100)
    )
    with pytest.raises(UserError, match=r"tokens\.bin: .* another dtype, header_bytes or"):
        dataset.open("train")  # before a step is taken


def test_an_id_that_the_sample_of_a_large_file_misses_is_told_by_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(memmap, "BLOCK", 8)
    monkeypatch.setattr(memmap._starts, "__defaults__", (4,))
    stream = np.zeros(1000, np.uint16)
    stream[200] = 100
    stream.tofile(tmp_path / "a.bin")
    dataset = Memmap(
        train=str(tmp_path / "a.bin"), sequence_length=10, tokenizer=Ids(vocab_size=100)
    )
    rows = dataset.open("train")
    rows[5]
    with pytest.raises(UserError, match="holds the id 100"):
        rows[20]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"123", "3 bytes less data.header_bytes = 0 are not a whole number of uint16"),
        ("a.bin", b"", "train split is empty"),
        ("a.npy", b"123", r"not a \.npy file"),
        ("a.npy", b"", r"not a \.npy file"),
        ("a.npy", b"\x93NUMPY\x01\x00\x03\x00{((", r"not a \.npy file"),
        ("a.npy", np.zeros(9, np.float32), "holds float32"),
        ("a.npy", np.zeros((3, 3), np.int32), r"shape \(3, 3\)"),
        ("a.npy", np.array([{}]), r"not a \.npy file of numbers"),
        ("a.npy", np.zeros(0, np.int32), "train split is empty"),
        ("a.npy", np.zeros(4, np.int32), "has 4 tokens in all"),
    ],
)
def test_bad_files_are_told(name, content, message, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(UserError, match=message):
        Memmap(train=str(path), sequence_length=8).open("train")


def test_missing_files_are_told(tmp_path):
    with pytest.raises(UserError, match=r"data\.validation names no file"):
        Memmap(train="x").open("validation")
    with pytest.raises(UserError, match=r"data\.train: no file or folder .*nowhere\.bin"):
        Memmap(train=str(tmp_path / "nowhere.bin")).open("train")


def test_a_header_longer_than_the_file_is_told(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"1234")
    with pytest.raises(UserError, match="header_bytes = 8"):
        Memmap(train=str(tmp_path / "a.bin"), header_bytes=8).open("train")


def test_the_fingerprint_follows_the_content(tmp_path):
    def fingerprint(stream) -> object:
        np.save(tmp_path / "a.npy", stream)
        return Memmap(train=str(tmp_path / "a.npy"), sequence_length=4).open("train").fingerprint

    assert fingerprint(STREAM) == fingerprint(STREAM.copy())
    assert fingerprint(STREAM) != fingerprint(STREAM[::-1])


def test_a_large_file_is_sampled_over_its_whole_length(tmp_path):
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(2 * BLOCK * BLOCKS + 12345)  # sparse
    before = sampled_sha256(path)
    size = path.stat().st_size
    for place in (0, size - 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        after = sampled_sha256(path)
        assert after != before
        before = after


def test_rules():
    def broken(**options) -> list[str]:
        return [name for name, _ in Memmap(**options).check()]

    assert broken() == []
    assert broken(tokenizer=Bpe()) == ["tokenizer.file"]
    assert broken(header_bytes=-1, sequence_length=0) == ["sequence_length", "header_bytes"]
    assert [n for n, _ in Ids(vocab_size=3, eos_id=3).check()] == ["eos_id"]
