"""Translated texts: a pair a row, whole, and no text of the training split in the other."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.data import debian
from moe_jax.data.debian import DebianDescriptions
from moe_jax.data.line_pairs import LinePairs
from moe_jax.data.package_descriptions import PackageDescriptions
from moe_jax.data.paired import WithLanguages
from moe_jax.data.prepare import prepare
from moe_jax.data.progress import Silent
from moe_jax.data.tokenizer import ByteTokenizer
from tests.data.archives import card_of


@pytest.fixture
def lines(tmp_path):
    """Sentence n in German and in English; the 7th is empty on one side, the 9th is long."""
    german = [f"Satz {n}" for n in range(120)]
    english = [f"sentence {n}" for n in range(120)]
    english[7], german[9] = "", "lang " * 40
    (tmp_path / "train.de").write_text("\n".join(german) + "\n")
    (tmp_path / "train.en").write_text("\n".join(english) + "\n")
    return LinePairs(
        source=str(tmp_path / "train.de"), target=str(tmp_path / "train.en"),
        data_dir=str(tmp_path / "data"), sequence_length=24, validation_fraction=0.3,
    )  # fmt: skip


def all_pairs(rows):
    return [(*rows.texts(i), rows.domains[rows[i]["domain"]]) for i in range(len(rows))]


def test_a_row_is_one_pair(lines):
    train, held = lines.open("train"), lines.open("validation")
    assert len(train) + len(held) == 118 and train.left_out + held.left_out == 1
    for source, target, domain in all_pairs(train) + all_pairs(held):
        assert source.split()[1] == target.split()[1] and domain == "de-en"
    row, S = train[0], 24
    assert {name: x.shape for name, x in row.items()} == {
        "source": (S,), "source_segments": (S,), "target": (S + 1,), "target_segments": (S + 1,),
        "domain": (),
    }  # fmt: skip
    tokenizer = train.tokenizer
    source = row["source"][row["source_segments"] > 0]
    target = row["target"][row["target_segments"] > 0]
    assert source[0] == tokenizer.language_id("en") and source[-1] == tokenizer.eos_id
    assert target[0] == tokenizer.bos_id and target[-1] == tokenizer.eos_id
    assert (row["source"][len(source) :] == tokenizer.pad_id).all()
    assert lines.vocabulary() == tokenizer.vocab_size == 259 + 2
    message = "\n".join(prepare(lines, Silent()))
    assert "1 empty lines" in message and "1 longer than a row" in message


def test_a_language_in_front_is_no_text():
    tokenizer = WithLanguages(ByteTokenizer(), ("de", "en"))
    ids = [tokenizer.language_id("en"), *tokenizer.encode("so"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "so"
    assert tokenizer.bytes_per_token_V.shape == (261,) and tokenizer.bytes_per_token_V[260] == 0
    assert {259, 260} <= set(tokenizer.special_ids)
    assert tokenizer.describe() != WithLanguages(ByteTokenizer(), ("en", "de")).describe()


def test_a_table_has_a_column_for_each_language(lines, tmp_path):
    rows = [{"de": f"Satz {n}", "en": f"sentence {n}"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = replace(lines, source=str(tmp_path / "rows.jsonl"), target="")
    found = [pair for split in ("train", "validation") for pair in all_pairs(table.open(split))]
    assert sorted(found) == sorted((row["de"], row["en"], "de-en") for row in rows)
    with pytest.raises(UserError, match=r"no text 'fr' \(data.languages\)"):
        replace(table, languages=("fr", "en")).open("train")


def test_a_set_of_its_own_validates(lines, tmp_path):
    for language in ("de", "en"):
        (tmp_path / f"val.{language}").write_text(f"{language} a\n{language} b\n")
    own = replace(
        lines,
        validation_source=str(tmp_path / "val.de"),
        validation_target=str(tmp_path / "val.en"),
    )
    assert sorted(all_pairs(own.open("validation"))) == [
        ("de a", "en a", "de-en"), ("de b", "en b", "de-en")
    ]  # fmt: skip
    assert len(own.open("train")) == 118


def test_files_that_do_not_belong_together_are_told(lines, tmp_path):
    (tmp_path / "train.en").write_text("only\n")
    with pytest.raises(UserError, match=r"train\.en: it ends before line 2 of the other file"):
        lines.open("train")
    with pytest.raises(UserError, match=r"no file .*gone"):
        replace(lines, target=str(tmp_path / "gone")).open("train")
    with pytest.raises(UserError, match="no table"):
        replace(lines, target="").open("train")
    assert {p.path for p in check(LinePairs(languages=("de", "de")))} == {"source", "languages"}


# Descriptions of packages

COUNT = 80


def indices():
    """Package n of source n // 2: a title and two paragraphs, the second of which every fifth
    package has in common; French lacks a paragraph of every seventh, and the third is the same."""
    packages, texts = [], {language: [] for language in debian.LANGUAGES}
    for n in range(COUNT):
        packages.append(
            f"Package: p{n}\nSource: s{n // 2}\nSection: net\nDescription-md5: {n:032x}\n"
        )
        for language in debian.LANGUAGES:
            if language not in ("en", "fr", "ja") or (language == "ja" and n % 8):
                continue
            common = f"{language} common" if n % 5 == 0 else f"{language} other {n}"
            parts = [f"{language} first {n}", common, f"the same {n}"]
            if language == "fr" and n % 7 == 0:
                parts.pop()
            texts[language].append(
                f"Package: p{n}\nDescription-md5: {n:032x}\n"
                f"Description-{language}: {language} title {n}\n " + "\n .\n ".join(parts) + "\n"
            )
    files = {"Packages": "\n".join(packages)}
    files |= {f"Translation-{name}": "\n".join(blocks) for name, blocks in texts.items()}
    return {name: text.encode() for name, text in files.items()}


@pytest.fixture
def data(tmp_path, monkeypatch):
    contents = indices()
    (tmp_path / "in").mkdir()
    for name, content in contents.items():
        (tmp_path / "in" / name).write_bytes(content)
    monkeypatch.setattr(DebianDescriptions, "card", card_of(debian.CARD, **contents))
    return PackageDescriptions(
        archive=str(tmp_path / "in"), data_dir=str(tmp_path / "data"), sequence_length=40,
        languages=("fr", "ja"), validation_fraction=0.3,
    )  # fmt: skip


def test_paragraphs_are_aligned_in_both_directions(data):
    rows = [pair for split in ("train", "validation") for pair in all_pairs(data.open(split))]
    assert {domain for _, _, domain in rows} == {"en-fr", "fr-en", "en-ja", "ja-en"}
    for source, target, domain in rows:
        one, other = domain.split("-")
        assert source.removeprefix(one) == target.removeprefix(other) and source != target
    assert len(set(rows)) == len(rows)  # a common paragraph comes once
    numbers = {s.split()[-1] for s, _, domain in rows if domain == "en-fr" and "first" in s}
    assert numbers == {str(n) for n in range(COUNT) if n % 7}
    assert not any("the same" in source for source, _, _ in rows)


def test_what_was_trained_on_does_not_validate(data):
    """Neither a source package nor an English paragraph is in two splits."""
    english, sources = {}, {}
    for split in ("train", "validation"):
        found = all_pairs(data.open(split))
        english[split] = {t if d.endswith("en") else s for s, t, d in found}
        numbers = {text.split()[-1] for text in english[split] if text[-1].isdigit()}
        sources[split] = {int(number) // 2 for number in numbers}
    assert english["train"] and english["validation"]
    assert not english["train"] & english["validation"]
    assert not sources["train"] & sources["validation"]
    assert "en common" in english["train"]


def test_directions_titles_and_languages(data):
    one = replace(data, direction="to_english", titles=False, languages=("fr",)).open("train")
    assert one.domains == ("fr-en",)
    assert not any("title" in source for source, _, _ in all_pairs(one))
    assert one.tokenizer.languages == ("en", "fr")
    wrong = replace(data, languages=("en", "fr"), direction="up")
    assert {p.path for p in check(wrong)} == {"languages", "direction"}
    few = replace(data, languages=("ja",), sequence_length=11).open("train")
    assert few.left_out > 0 and all(np.all(few[i]["target"] >= 0) for i in range(len(few)))
