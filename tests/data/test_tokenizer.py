from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from moe_jax.config.errors import UserError
from moe_jax.data.tokenizer import (
    Bpe,
    ByteTokenizer,
    IdTokenizer,
    load_bpe,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
)

CORPUS = [
    "def f(x):\n    return x + 1\n" * 30,
    "naïve café, 日本 🙂 " * 20,
    "the the them then " * 40,
]
NASTY = ["", "a", "\x00\n\t \r\n", "<eos><bos><pad>", "é́ 日本語 🙂🙂", "  two  spaces", "'ll 'LL ﷺ"]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(CORPUS, 300)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, bpe):
    return ByteTokenizer() if request.param == "bytes" else bpe


@pytest.mark.parametrize("text", NASTY + CORPUS)
def test_no_text_is_lost_and_bytes_add_up(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert not set(ids.tolist()) & set(tokenizer.special_ids)
    assert tokenizer.bytes_per_token_V[ids].sum() == len(text.encode("utf-8"))


def test_a_batch_is_encoded_as_its_texts(tokenizer):
    for ids, text in zip(tokenizer.encode_batch(CORPUS), CORPUS, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_specials(tokenizer):
    specials = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
    assert set(specials) == set(tokenizer.special_ids)
    assert len(set(specials)) == 3
    assert tokenizer.decode([*specials, *tokenizer.encode("ab"), tokenizer.eos_id]) == "ab"
    expected = np.ones(tokenizer.vocab_size, bool)
    expected[list(tokenizer.special_ids)] = False
    np.testing.assert_array_equal(tokenizer.bytes_per_token_V > 0, expected)
    assert tokenizer.bytes_per_token_V.dtype == np.int32


def test_broken_utf8_is_replaced(tokenizer):
    half = tokenizer.encode("日本 x")[:1]
    assert tokenizer.bytes_per_token_V[half].sum() < 3
    assert tokenizer.decode([*tokenizer.encode("a"), *half]) == "a�"


def test_an_id_outside_the_vocabulary_is_left_out(tokenizer):
    assert tokenizer.decode([10**6, *tokenizer.encode("ab")]) == "ab"


def test_bpe_compresses_and_keeps_its_size(bpe):
    text = CORPUS[0]
    assert bpe.vocab_size <= 300
    assert len(bpe.encode(text)) < len(text) / 2


def test_training_is_deterministic_and_depends_on_the_text(bpe):
    assert train_bpe(iter(CORPUS), 300).describe() == bpe.describe()
    assert train_bpe(CORPUS[:1], 300).describe() != bpe.describe()


def test_a_long_text_is_trained_on_in_pieces(monkeypatch):
    whole = train_bpe(["ab " * 1000], 262)
    assert whole.decode(whole.encode("ab ab")) == "ab ab"


def test_a_tokenizer_is_saved_and_loaded(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    again = load_tokenizer(tmp_path, json.loads(json.dumps(tokenizer.describe())))
    assert type(again) is type(tokenizer)
    for text in CORPUS:
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


def test_another_tokenizer_in_the_folder_is_noticed(bpe, tmp_path):
    save_tokenizer(train_bpe(CORPUS, 280), tmp_path)
    with pytest.raises(UserError, match="not the tokenizer"):
        load_tokenizer(tmp_path, bpe.describe())


def lossy(normalizer=None, prefix=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        lossy(normalizers.Lowercase()),
        lossy(normalizers.NFKC()),
        lossy(prefix=True),
        Tokenizer(models.BPE()),
    ],
    ids=["lowercase", "nfkc", "prefix space", "no byte level"],
)
def test_a_tokenizer_that_loses_text_is_refused(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="lossless"):
        load_bpe(tmp_path / "tokenizer.json")


def test_a_foreign_tokenizer_is_read_with_its_specials_and_without_its_truncation(tmp_path):
    tokenizer = lossy()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens(["日本"])  # an ordinary token outside the byte level
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    foreign = load_bpe(tmp_path / "tokenizer.json")
    assert foreign.eos_id == tokenizer.token_to_id("<|endoftext|>") == foreign.pad_id
    assert foreign.bos_id is None
    ids = foreign.encode("in 日本, said <|endoftext|> nobody")
    assert foreign.eos_id not in ids
    assert foreign.bytes_per_token_V[ids].sum() == len(
        "in 日本, said <|endoftext|> nobody".encode()
    )


@pytest.mark.parametrize("content", [None, "{}", "not json", b"\xff\xfe"])
def test_a_bad_tokenizer_file_is_told(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_bpe(path)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"moe_jax\[text\]"):
        Bpe().make(CORPUS)


def test_a_vocabulary_below_the_bytes_is_refused():
    assert [name for name, _ in Bpe(vocab_size=256).check()] == ["vocab_size"]
    assert not list(Bpe(vocab_size=260).check())


def test_ids_are_written_as_numbers():
    tokenizer = IdTokenizer(10, eos_id=9)
    np.testing.assert_array_equal(tokenizer.encode(" 3 1\n4 "), [3, 1, 4])
    assert tokenizer.decode([3, 1, 9, 4]) == "3 1 4"
    assert tokenizer.special_ids == (9,)
    for text in ("3 x", "10", "-1", "99999999999"):
        with pytest.raises(UserError):
            tokenizer.encode(text)
