from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.data.folder import Folder
from moe_jax.data.mixture import Mixture
from moe_jax.data.planted import Planted
from moe_jax.data.progress import Silent
from moe_jax.data.tokenizer import Bpe


def test_parts_are_read():
    mixture = Mixture(
        sequence_length=32,
        data_dir="here",
        parts=(
            "stdlib_text: 0.7",
            "poems = folder(path=a/b, suffixes=(.txt, .md), tokenizer.kind=bpe, "
            "tokenizer.vocab_size=300): 2e-1",
            "moe_jax.data.folder:Folder(path='x, y', data_dir=there) : 1",
        ),
    )
    stdlib, poems, other = mixture.parsed()
    assert (stdlib.label, stdlib.weight, stdlib.dataset.data_dir) == ("stdlib_text", 0.7, "here")
    assert (poems.label, poems.weight) == ("poems", 0.2)
    assert poems.dataset == Folder(
        sequence_length=32,
        path="a/b",
        suffixes=(".txt", ".md"),
        tokenizer=Bpe(vocab_size=300),
        data_dir="here",
    )
    assert other.dataset == Folder(sequence_length=32, path="x, y", data_dir="there")


def test_rows_know_their_domain():
    mixture = Mixture(
        sequence_length=8, parts=("a = planted(rows=5): 1", "b = planted(rows=3, seed=1): 3")
    )
    rows = mixture.open("train")
    parts = [Planted(sequence_length=8, rows=5).open("train")]
    parts += [Planted(sequence_length=8, rows=3, seed=1).open("train")]
    assert (len(rows), rows.domains) == (8, ("a", "b"))
    assert rows.mixture == ((5, 1.0), (3, 3.0))
    expected = np.concatenate([part.tokens for part in parts])
    np.testing.assert_array_equal([rows[i]["tokens"] for i in range(8)], expected)
    assert [int(rows[i]["domain"]) for i in range(8)] == [0] * 5 + [1] * 3
    with pytest.raises(IndexError):
        rows[8]


def test_validation_is_each_row_once_and_well_mixed():
    parts = ("a = planted(validation_rows=300): 1", "b = planted(validation_rows=100, seed=1): 9")
    rows = Mixture(sequence_length=8, parts=parts).open("validation")
    domains = np.array([rows[i]["domain"] for i in range(len(rows))])
    assert domains.sum() == 100
    # Hypergeometric: 4 standard deviations around a quarter of the first 100.
    assert abs(domains[:100].sum() - 25) < 4 * np.sqrt(100 * 0.25 * 0.75 * 300 / 399)


def test_the_fingerprint_holds_weights_and_parts():
    def fingerprint(weight: float, rows: int) -> str:
        parts = (f"a = planted(rows={rows}): {weight}", "b = planted(rows=2): 1")
        return json.dumps(Mixture(sequence_length=8, parts=parts).open("train").fingerprint)

    assert fingerprint(1, 5) == fingerprint(1, 5)
    assert len({fingerprint(1, 5), fingerprint(2, 5), fingerprint(1, 6)}) == 3


def test_tokenizers_must_agree(tmp_path):
    for name, text in (("a", "aaaa bbbb " * 50), ("b", "cccc dddd " * 50)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(text)

    def mixture(settings: str) -> Mixture:
        parts = [f"{x} = folder(path={tmp_path}/{x}, {settings}): 1" for x in "ab"]
        return Mixture(sequence_length=8, parts=tuple(parts), data_dir=str(tmp_path / "data"))

    assert len(mixture("tokenizer.kind=bytes").open("train")) > 0
    own = mixture("tokenizer.kind=bpe, tokenizer.vocab_size=265")
    with pytest.raises(UserError, match="need one tokenizer"):
        own.open("train")
    first = own.parsed()[0].dataset
    file = first.stored_in()[0] / "tokenizer.json"
    shared = mixture(f"tokenizer.kind=bpe, tokenizer.file={file}")
    rows = shared.open("train")
    assert rows.tokenizer.describe() == first.open("train").tokenizer.describe()


def test_parts_are_prepared(tmp_path):
    (tmp_path / "a.txt").write_text("some words " * 20)
    parts = (f"folder(path={tmp_path}/a.txt, auto_prepare=false): 1", "planted: 1")
    mixture = Mixture(sequence_length=8, parts=parts, data_dir=str(tmp_path / "data"))
    with pytest.raises(UserError, match=r"moe_jax\.data\.prepare --dataset=folder"):
        mixture.open("train")
    mixture.prepare(Silent())
    (folder,) = mixture.stored_in()
    assert (folder / "train.bin").exists()


@dataclass(frozen=True, kw_only=True)
class NoTokenizer(Planted):
    """Somebody's text that does not say what its ids are."""

    def open(self, split):
        rows = super().open(split)
        rows.tokenizer = None
        return rows


@pytest.mark.parametrize("parts", [("a", "b"), ("b", "a"), ("b", "c")])
def test_a_part_without_a_tokenizer(parts):
    own = f"{__name__}:NoTokenizer"
    kinds = {"a": "a = planted: 1", "b": f"b = {own}: 1", "c": f"c = {own}: 1"}
    with pytest.raises(UserError, match=r"need one tokenizer.* none"):
        Mixture(parts=tuple(kinds[part] for part in parts)).open("train")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "at least one part"),
        (("stdlib_text",), "must read KIND: WEIGHT"),
        (("stdlib_text(: 1",), "must read KIND: WEIGHT"),
        (("stdlib_text: 0",), "weight must be a number above 0"),
        (("stdlib_text: -1",), "weight must be a number above 0"),
        (("stdlib_text: nan",), "weight must be a number above 0"),
        (("stdlib_text: inf",), "weight must be a number above 0"),
        (("stdlib_text: much",), "weight must be a number above 0"),
        (("stdlib_txt: 1",), "did you mean stdlib_text?"),
        (("mixture: 1",), "no kind 'mixture'"),
        (("planted(rows): 1",), "must read setting=value"),
        (("planted(rosw=1): 1",), r"did you mean config\.rows"),
        (("planted(rows=many): 1",), "must be an integer"),
        (("planted(rows=0): 1",), "must be at least 1"),
        (("planted(sequence_length=3): 1",), "sequence_length is the mixture's"),
        (("planted: 1", "planted: 2"), "two parts are named planted"),
        (("a = planted: 1", "a = folder(path=x): 2"), "two parts are named a"),
        (("folder: 1",), "must name folders or files"),
        (("moe_jax.data.digits:Digits: 1",), "has no sequence_length"),
    ],
)
def test_wrong_parts_are_told(parts, message):
    mixture = Mixture(parts=parts)
    (problem,) = check(mixture)
    assert problem.path == "parts"
    with pytest.raises(UserError, match=message):
        mixture.open("train")
