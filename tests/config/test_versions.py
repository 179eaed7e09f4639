"""Which releases are supported, said in one place and tested against setup.py and the locks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moe_jax.config import versions
from moe_jax.config.errors import UserError

ROOT = Path(__file__).parents[2]


def test_the_oldest_are_those_of_setup_py_and_of_the_oldest_lock():
    text = (ROOT / "setup.py").read_text("utf-8")
    lock = dict(
        line.split("==") for line in (ROOT / "launch/locks/oldest.txt").read_text().splitlines()
    )
    for name, supported in versions.LIBRARIES.items():
        assert f'"{name}>={supported.oldest}"' in text, name
        assert lock[name] == supported.oldest, name


def test_the_newest_are_those_of_the_newest_lock():
    files = (ROOT / "launch/locks").glob("py*.txt")
    newest = max(files, key=lambda file: versions.number(file.stem.removeprefix("py")))
    lock = dict(line.split("==") for line in newest.read_text().splitlines())
    assert {n: lock[n] for n in versions.LIBRARIES} == {
        name: supported.newest for name, supported in versions.LIBRARIES.items()
    }


def test_numbers_of_releases():
    assert versions.number("0.12.0.1") > versions.number("0.12.0") > versions.number("0.9.2")
    assert versions.number("0.10.2rc1") == versions.number("0.10.2+cpu") == (0, 10, 2)


def test_what_is_missing_or_too_old_is_one_message(monkeypatch):
    found = {"jax": "0.9.2", "flax": None}
    really = versions.installed
    monkeypatch.setattr(
        versions, "installed", lambda name: found[name] if name in found else really(name)
    )
    with pytest.raises(
        UserError, match=r"jax 0\.9\.2 is too old; moe_jax needs 0\.10\.2"
    ) as raised:
        versions.require()
    assert "flax is not installed" in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_newer_one_is_a_note(monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda name: "99.0")
    assert len(versions.newer_than_tested()) == len(versions.LIBRARIES)
    versions.require()


def test_locks_name_exact_versions_and_no_index():
    for file in (ROOT / "launch/locks").glob("*.txt"):
        for line in file.read_text().splitlines():
            assert re.fullmatch(r"[\w.-]+==[\w.+!-]+", line), f"{file.name}: {line}"
