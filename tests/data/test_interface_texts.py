"""Texts of an interface: read from packs of languages, no English text in two splits."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace

import pytest

from moe_jax.config.checks import check
from moe_jax.config.errors import UserError
from moe_jax.data.interface_texts import CARD, CONTEXT, PACKS, InterfaceTexts
from tests.data.archives import card_of

COUNT = 60


def wheel(language: str) -> bytes:
    """Text n, in two files that share the first; a plural, a context, one without a translation,
    one that is the same, one with spaces around."""
    first = {"": {"domain": "a"}, "Open 0": [f"{language} 0"]}
    many = {f"Open {n}": [f"{language} {n}"] for n in range(COUNT)}
    odd = {
        f"menu{CONTEXT}File": [f"{language} file"],
        "%1 cell": [f"{language} cell", f"{language} cells"],
        "Missing": [""],
        "Kernel": ["Kernel"],
        " Around\n": [f" {language} around\n"],
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, texts in (("a.json", first), ("b.json", {**many, **odd}), ("c.mo", {})):
            archive.writestr(f"pack/locale/{name}", json.dumps(texts))
    return out.getvalue()


@pytest.fixture
def data(tmp_path, monkeypatch):
    names = [archive.file for archive in CARD.archives]
    contents = dict(zip(names, map(wheel, PACKS), strict=True))
    (tmp_path / "in").mkdir()
    for name, content in contents.items():
        (tmp_path / "in" / name).write_bytes(content)
    monkeypatch.setattr(InterfaceTexts, "card", card_of(CARD, **contents))
    return InterfaceTexts(
        archive=str(tmp_path / "in"), data_dir=str(tmp_path / "data"), sequence_length=40,
        languages=("fr", "ja"), validation_fraction=0.3,
    )  # fmt: skip


def pairs_of(data, split):
    rows = data.open(split)
    return [(*rows.texts(i), rows.domains[rows[i]["domain"]]) for i in range(len(rows))]


def test_each_text_stands_once_beside_its_translation(data):
    found = [pair for split in ("train", "validation") for pair in pairs_of(data, split)]
    french = {english: other for english, other, languages in found if languages == "en-fr"}
    wanted = {f"Open {n}": f"fr {n}" for n in range(COUNT)}
    wanted |= {"File": "fr file", "%1 cell": "fr cell", "Around": "fr around"}
    assert french == wanted
    assert len(found) == 4 * len(wanted) == len(set(found))
    assert {languages for *_, languages in found} == {"en-fr", "fr-en", "en-ja", "ja-en"}


def test_no_english_text_is_in_two_splits(data):
    english = {
        split: {a if languages.startswith("en") else b for a, b, languages in pairs_of(data, split)}
        for split in ("train", "validation")
    }
    assert len(english["train"]) > 30 and len(english["validation"]) > 8
    assert not english["train"] & english["validation"]


def test_what_was_prepared_needs_no_archive_and_is_held_to(data, tmp_path):
    before = pairs_of(data, "train")
    for file in (tmp_path / "in").iterdir():
        file.write_bytes(b"another")
    assert pairs_of(data, "train") == before
    other = replace(data, data_dir=str(tmp_path / "other"))
    with pytest.raises(UserError, match="its sha256 is"):
        other.open("train")
    assert {problem.path for problem in check(replace(data, languages=("da",)))} == {"languages"}
