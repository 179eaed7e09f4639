"""The vowels: read from a table, no speaker in two splits, Praat only in a process of its own."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.data.vowels import FORMANTS, PAPER, SPEAKERS, TABLE, VOWELS, Vowels, training_speakers
from tests.data.archives import card_of


@pytest.fixture
def table(tmp_path, monkeypatch):
    """F0 is the speaker, F1 the vowel's number, F2 the utterance, F3 all of them."""
    lines = ["Type\tSex\tSpeaker\tVowel\tIPA\tF0\tF1\tF2\tF3"]
    for speaker in range(1, SPEAKERS + 1):
        for number, vowel in enumerate(VOWELS):
            for again in range(2):
                numbers = f"{speaker}\t{number}\t{again}\t{speaker + 100 * number + again}"
                lines.append(f"m\tm\t{speaker}\t{vowel}\tx\t{numbers}")
    content = ("\n".join(lines) + "\n").encode()
    (tmp_path / TABLE).write_bytes(content)
    monkeypatch.setattr(Vowels, "card", card_of(Vowels.card, table=content))
    return Vowels(archive=str(tmp_path / TABLE), data_dir=str(tmp_path / "data"))


def test_no_speaker_is_in_two_splits(table):
    train, held = table.open("train"), table.open("validation")
    assert (len(train), len(held)) == (50 * 4 * 2, 26 * 4 * 2)
    assert set(train.speakers) == set(training_speakers())
    assert len(set(train.speakers) | set(held.speakers)) == SPEAKERS
    assert not set(train.speakers) & set(held.speakers)
    assert np.bincount(held.labels).tolist() == [52] * 4


def test_formants_are_scaled_by_those_who_train(table):
    data = Vowels(**{**vars(table), "vowels": VOWELS, "formants": FORMANTS})
    train, held = data.open("train"), data.open("validation")
    np.testing.assert_allclose(train.features.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(train.features.std(axis=0), 1, rtol=1e-5)
    for rows in (train, held):
        np.testing.assert_array_equal(rows.hertz[:, 0], rows.speakers)
        np.testing.assert_array_equal(rows.hertz[:, 1], rows.labels)
        for i in (0, len(rows) - 1):
            row = rows[i]
            assert row["features"].shape == (4,) and row["features"].dtype == np.float32
            at = np.flatnonzero((rows.features == row["features"]).all(axis=1))
            assert int(row["label"]) in rows.labels[at]
    scaled = (held.hertz - train.hertz.mean(axis=0)) / train.hertz.std(axis=0)
    np.testing.assert_allclose(held.features, scaled, rtol=1e-5, atol=1e-6)


def test_the_four_of_the_paper_are_the_default(table):
    assert table.open("train").classes == PAPER == ("iy", "ih", "aa", "ah")
    assert {p.path for p in check(Vowels(vowels=("iy",), formants=()))} == {"vowels", "formants"}
    assert {p.path for p in check(Vowels(vowels=("iy", "xx")))} == {"vowels"}


def test_without_praat_the_extra_is_named(tmp_path, monkeypatch):
    missing = "raise ModuleNotFoundError(\"No module named 'parselmouth'\")"
    (tmp_path / "parselmouth.py").write_text(missing)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r'not installed: pip install "moe_jax\[vowels\]"'):
        Vowels(data_dir=str(tmp_path)).open("train")
    assert "parselmouth" not in sys.modules
