"""What of the slow tests runs when: few of each grid in the ordinary suite, and of the rest a part
drawn by a word, another part for each commit.

commit=$(git rev-parse HEAD)
pytest --drawn=3:$commit                        one test in three
pytest --drawn-files=2:$commit                  every second file, whole
python -m tests.mutants.run --drawn=3:$commit   one fault in three
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

HELP = "a part drawn by a word, one in PARTS: 3:word"


@dataclass(frozen=True)
class Drawn:
    """One name in `parts`."""

    parts: int
    word: str

    @classmethod
    def parse(cls, text: str) -> Drawn:
        """Of a text such as 3:word; anything else is an error of argparse, and so of pytest."""
        parts, colon, word = text.partition(":")
        if not (parts.isdigit() and int(parts) and colon and word):
            raise argparse.ArgumentTypeError(f"{text!r} is not PARTS:WORD, as in 3:abc")
        return cls(int(parts), word)

    def __contains__(self, name: str) -> bool:
        return zlib.crc32(f"{self.word} {name}".encode()) % self.parts == 0


def some(values: Iterable[Any], ordinary: Collection[Any], several: bool = False) -> list[Any]:
    """Values of a parametrization, of which the ordinary suite takes a few; the rest of the grid is
    `make test-grid`. several: each value is a tuple of the values of several names."""
    values = list(values)
    assert all(one in values for one in ordinary), (values, ordinary)
    return [
        pytest.param(
            *(value if several else (value,)),
            marks=() if value in ordinary else pytest.mark.grid,
        )
        for value in values
    ]
