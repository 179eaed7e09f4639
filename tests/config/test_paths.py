"""Paths as users write them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from moe_jax.config import xla_flags
from moe_jax.config.errors import UserError
from moe_jax.config.paths import expanded, folder_of, home_cache


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    """A container's user that no file of users knows: ~ was a traceback."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert home_cache().parent == Path(tempfile.gettempdir())
    assert xla_flags._file().parent == home_cache()


def test_a_home_folder_is_found_or_told():
    assert expanded("~/a") == Path.home() / "a"
    assert expanded("a/~") == Path("a/~")
    for read in (expanded, folder_of):
        with pytest.raises(
            UserError, match=r"^~nosuchuser/x: there is no home folder ~nosuchuser$"
        ):
            read("~nosuchuser/x")
        with pytest.raises(UserError, match="NUL"):
            read("a\0b")
