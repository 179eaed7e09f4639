"""What is tracked: the agreed top level, small files, nothing of the machine it was written on."""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

import pytest

from tests.drawn import Drawn
from tests.mutants.run import FAULTS

ROOT = Path(__file__).parents[1]
TOP_LEVEL = set(
    "setup.py README.md moe_jax configs experiments tests launch docs Makefile LICENSE "
    "CONTRIBUTING.md CHANGELOG.md pyproject.toml .pre-commit-config.yaml .gitignore .ci".split()
)
MACHINE = re.compile(
    r"/(work|root|home|Users|opt|mnt)/\w"
    r"|pythonhosted\.org|pypi\.org|download\.pytorch\.org|(extra-)?index-url|find-links"
)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.exists()]


def test_top_level_is_the_agreed_one():
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} == TOP_LEVEL


def test_planted_faults_still_have_a_place():
    """Each fragment of `make test-mutants` stands exactly once in its file."""
    for fault in FAULTS:
        assert (ROOT / fault.file).read_text("utf-8").count(fault.old) == 1, fault.name


def test_a_drawn_part_is_its_word_s_own():
    """Of 3,000 names one in three, another third for another word; an error for other text."""
    names = [f"tests/a.py::test[{i}]" for i in range(3000)]
    one, two = ([name in Drawn.parse(f"3:{word}") for name in names] for word in ("abc", "abd"))
    assert all(900 < sum(part) < 1100 for part in (one, two))
    assert 250 < sum(a and b for a, b in zip(one, two, strict=True)) < 420
    assert all(name in Drawn.parse("1:abc") for name in names)
    for text in ("abc", "0:abc", "3:", "-1:abc"):
        with pytest.raises(argparse.ArgumentTypeError, match="PARTS:WORD"):
            Drawn.parse(text)


def test_no_large_file():
    assert not [path for path in tracked() if path.stat().st_size > 1e6]


def test_nothing_of_a_machine():
    for path in tracked():
        if path != Path(__file__) and path.suffix not in {".png", ".gif"}:
            found = MACHINE.search(path.read_text("utf-8"))
            assert not found, f"{path.relative_to(ROOT)}: {found[0]}"


def test_links_of_the_docs_lead_somewhere():
    for path in tracked():
        if path.suffix == ".md":
            text = re.sub(r"<!--.*?-->", "", path.read_text("utf-8"), flags=re.DOTALL)
            for target in LINK.findall(text):
                assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"
