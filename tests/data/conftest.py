"""The real dataset, built once a session, and small ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_jax.data.stdlib_text import StdlibText

POEM = "Über allen Gipfeln\nist Ruh,\nin allen Wipfeln\nspürest du\nkaum einen Hauch;\n"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the text of the standard library is prepared."""
    folder = tmp_path_factory.mktemp("prepared")
    StdlibText(data_dir=str(folder)).open("train")
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with a few texts."""
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text(POEM * 20, "utf-8")
    (folder / "deep" / "b.txt").write_text("one\ntwo\n" * 50, "utf-8")
    (folder / "c.jsonl").write_text('{"text": "first"}\n\n{"text": "second \\u00fc"}\n', "utf-8")
    (folder / "ignored.md").write_text("not read", "utf-8")
    return folder


@pytest.fixture(autouse=True)
def no_data_dir_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is written to the home folder."""
    monkeypatch.setenv("MOE_JAX_DATA_DIR", str(tmp_path / "default_data"))
