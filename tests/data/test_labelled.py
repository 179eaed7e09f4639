"""Texts with labels: of files, and the rated sentences of a package."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from moe_jax.config.errors import UserError
from moe_jax.data.fetch.archives import fetched
from moe_jax.data.labelled_folder import LabelledFolder
from moe_jax.data.prepare import prepare
from moe_jax.data.progress import Silent
from moe_jax.data.sentiment import CARD, CLASSES, SOURCES, Sentiment
from moe_jax.data.types import columns_of
from tests.data.rated_sentences import archive_of, card_of


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def all_rows(rows):
    return [rows[i] for i in range(len(rows))]


@pytest.fixture
def folder(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    rows = [{"text": f"text number {n}", "label": n % 11, "site": "ab"[n % 2]} for n in range(300)]
    write_rows(texts / "a.jsonl", rows)
    lines = ["text,label,site"] + [f'"more, {n}",{n % 11},c' for n in range(50)]
    (texts / "b.csv").write_text("\n".join(lines) + "\n")
    return texts


def test_rows_of_files(folder, tmp_path):
    """A text a row, cut and filled up; classes and domains by name; each text in one split."""
    data = LabelledFolder(
        path=str(folder), data_dir=str(tmp_path), sequence_length=12, domain="site"
    )
    train, held = data.open("train"), data.open("validation")
    assert train.classes == tuple(str(n) for n in range(11)) == held.classes
    assert train.domains == ("a", "b", "c")
    assert len(train) + len(held) == 350 and 5 < len(held) < 40
    decode, seen = train.tokenizer.decode, set()
    for rows in (train, held):
        for row in all_rows(rows):
            assert {k: v.shape for k, v in row.items()} == {
                name: spec.shape for name, spec in columns_of(data).items()
            }
            text = decode(row["tokens"][row["segments"] > 0])
            number = (
                int(row["tokens"].size and text.split()[-1]) if text.startswith("more") else None
            )
            if number is not None:
                assert int(row["label"]) == number % 11 and rows.domains[row["domain"]] == "c"
            seen.add(text)
            assert row["segments"].sum() <= 12
    assert "more, 17" in seen and all(len(text) <= 12 for text in seen)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}], "no text 'label' (data.field); it has text"),
        ([{"text": "a", "label": [1]}], "of type list"),
        ([{"label": 1}], "no text 'text'"),
    ],
)
def test_rows_without_text_or_label_are_told(rows, message, tmp_path):
    (tmp_path / "in").mkdir()
    write_rows(tmp_path / "in/a.jsonl", rows)
    data = LabelledFolder(path=str(tmp_path / "in"), data_dir=str(tmp_path))
    with pytest.raises(UserError) as error:
        data.open("train")
    assert message in str(error.value) and "a.jsonl, line 1" in str(error.value)


def test_other_labels_are_another_set(folder, tmp_path):
    """The fingerprint hangs on the labels, not only on the texts."""
    data = LabelledFolder(path=str(folder), data_dir=str(tmp_path), sequence_length=12)
    before = data.open("train").fingerprint
    content = (folder / "a.jsonl").read_text().replace('"label": 3,', '"label": 4,')
    (folder / "a.jsonl").write_text(content)
    after = data.open("train").fingerprint
    assert before["content"]["sha256"] == after["content"]["sha256"]
    assert before["content"]["labels"] != after["content"]["labels"]


# The rated sentences, of a small archive of the same form


@pytest.fixture
def package(tmp_path, monkeypatch):
    path = tmp_path / "vaderSentiment-0.5.zip"
    monkeypatch.setattr(Sentiment, "card", card_of(archive_of(path)))
    return path


def test_ratings_become_classes_and_sources_domains(package, tmp_path):
    data = Sentiment(archive=str(package), data_dir=str(tmp_path), validation_fraction=0.3)
    message = "\n".join(prepare(data, Silent()))
    assert "160 documents" in message and "4 lines without a rating" in message
    train, held = data.open("train"), data.open("validation")
    assert train.classes == CLASSES and train.domains == tuple(sorted(SOURCES))
    assert len(train) + len(held) == 160
    groups = []
    for rows in (train, held):
        found = set()
        for row in all_rows(rows):
            text = rows.tokenizer.decode(row["tokens"][row["segments"] > 0])
            name, _, number = text.partition(" sentence ")
            rating = int(number) % 9 - 4 + 0.25
            assert float(row["rating"]) == rating
            assert rows.classes[row["label"]] == (
                "neutral" if abs(rating) <= 0.5 else "positive" if rating > 0 else "negative"
            )
            assert SOURCES[rows.domains[row["domain"]]] == name
            found.add((name, int(number) // 3))
        groups.append(found)
    assert not groups[0] & groups[1]  # no review or editorial in both
    wide = Sentiment(archive=str(package), data_dir=str(tmp_path), neutral=3.9).open("train")
    assert {int(row["label"]) for row in all_rows(wide)} == {1, 2}


def test_another_archive_is_refused(package, tmp_path):
    package.write_bytes(package.read_bytes() + b"x")
    data = Sentiment(archive=str(package), data_dir=str(tmp_path))
    with pytest.raises(UserError, match="its sha256 is"):
        data.open("train")
    assert not list((tmp_path / "sources").glob("[!.]*"))
    with pytest.raises(UserError, match=r"data.archive: no file .*gone"):
        replace(data, archive=str(tmp_path / "gone")).open("train")


def test_what_cannot_be_fetched_is_told(tmp_path, monkeypatch):
    """Without a network, an index or pip: one message that says what to do."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    with pytest.raises(UserError) as error:
        fetched(CARD.archives, None, "data.archive", tmp_path)
    assert "vaderSentiment==0.5 could not be fetched with pip" in str(error.value)
    assert "data.archive=PATH" in str(error.value)
    assert not np.any([path.suffix == ".zip" for path in tmp_path.iterdir()])
