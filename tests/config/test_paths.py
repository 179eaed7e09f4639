"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_jax.config.errors import UserError
from moe_jax.config.paths import expanded, folder_of


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
