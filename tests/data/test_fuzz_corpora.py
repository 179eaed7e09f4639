"""Drawn bytes in the name of each format: documents or one message, never another exception."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.config.errors import UserError
from tests.data.corpora import COLUMNS, LINES, PACKERS, TEXTS, documents_of, write, write_array
from tests.fuzz import drawn

SUFFIXES = [".txt", *(suffix + packing for suffix in LINES for packing in PACKERS), *COLUMNS]
# What the formats are made of.
PIECES = [b'{"text": "', b'"}', b"\n", b"\r\n", b'"', b",", b"\t", b"[", b"]", b"{", b"null", b"\\"]
PIECES += [
    b"text",
    b"text,id\n",
    b"\\ud800",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\0",
    b"\x80",
    b"1e999",
]


@functools.cache
def good(suffix: str) -> tuple[bytes, ...]:
    """Whole files of a format."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"a{suffix}"
        if suffix == ".txt":
            return ("".join(TEXTS).encode(),)
        found = [write(file, TEXTS * 3).read_bytes()]
        if suffix == ".json":
            write_array(file, TEXTS * 3)
            found.append(file.read_bytes())
    return tuple(found)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A copy with a few bytes changed, zeroed, left out, put in or cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        stop = min(start + draw(st.integers(0, 24)), len(content))
        new = draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from(PIECES),
                st.just(bytes(stop - start)),
                st.just(bytes(content[start:stop]) * 2),
            )
        )
        content[start:stop] = new
        if draw(st.integers(0, 9)) == 0:
            del content[start:]
    return bytes(content)


def contents(suffix: str) -> st.SearchStrategy[bytes]:
    made = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)
    found = [st.binary(max_size=200), made, *map(damaged, good(suffix))]
    pack = PACKERS.get(Path(suffix).suffix if suffix.count(".") == 2 else "", bytes)
    if pack is not bytes:
        found += [made.map(pack), damaged(good(Path(suffix).stem or suffix)[0]).map(pack)]
    return st.one_of(found)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_documents_or_one_message(suffix, tmp_path_factory):
    file = tmp_path_factory.mktemp("fuzz") / f"a{suffix}"

    @drawn
    @given(contents(suffix), st.sampled_from(["text", "meta.text", ""]))
    def read(content: bytes, field: str) -> None:
        file.write_bytes(content)
        left = documents_of(file, field=field, on_error="skip")
        assert all(left) and "".join(left).encode("utf-8") is not None
        try:
            assert documents_of(file, field=field) == left
        except UserError as error:
            assert str(error).startswith(str(file)) and "data.on_error=skip" in str(error)

    read()
